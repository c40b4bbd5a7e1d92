"""A bare VM: hako's machine, kernel and command line with a trivial init; booted, saved and restored by hand.

Owns: QEMU's process, its console and monitor. The machine is the one that shim/hypervisor/qemu/argv.py makes for a VM
without share, vsock and network cards, hot-plug ports included: what any VM of hako must pay, and nothing that hako's own
work costs. Knows no pods. Used by `floors` and `footprint`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from shim.hypervisor.base import VmSpec
from shim.hypervisor.qemu import argv, driver, restore
from shim.hypervisor.qemu.events import MIGRATION_ENDS, Events
from shim.hypervisor.qemu.qmp import Qmp
from shim.sandbox import template
from tests.bench.lab import Lab
from tests.bench.measure import RunFailed, readable
from tests.bench.settings import COLD
from tests.bench.stacks import Stack

READY, ANSWER = b"hako-floor: ready", b"hako-floor: here"
DEADLINE = 60.0


class FloorVm:
    """`with` it: QEMU runs. `memory_fd`: a file for its RAM; `incoming`: it waits for a saved state."""

    def __init__(self, lab: Lab, stack: Stack, memory_fd: int = -1, *, incoming: bool = False) -> None:
        config = lab.loaded(COLD, stack).hypervisor
        self._options = driver.options(config)
        self._incoming = incoming
        self._undo = ExitStack()
        self._spec = VmSpec(
            name="floor", uuid="00000000-0000-4000-8000-000000000002", kernel=lab.guest.kernel, image=lab.floor_image,
            memory_mib=config.default_memory, memory_fd=memory_fd,
        )  # fmt: skip

    def __enter__(self) -> FloorVm:
        self._console, console = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        assert self._spec.image is not None
        kernel, image = (os.open(path, os.O_RDONLY) for path in (self._spec.kernel, self._spec.image))
        fds = argv.Fds(monitor.fileno(), console.fileno(), kernel, disks=(image,))
        passed = [monitor.fileno(), console.fileno(), kernel, image]
        self._qemu = subprocess.Popen(
            argv.command(self._spec, fds, self._options, incoming=self._incoming), stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE, pass_fds=passed if self._spec.memory_fd < 0 else [*passed, self._spec.memory_fd],
        )  # fmt: skip
        for end in (console, monitor):
            end.close()
        os.close(kernel)
        os.close(image)
        return self

    def __exit__(self, *_: object) -> None:
        self._qemu.kill()
        self._qemu.wait()
        self._undo.close()
        assert self._qemu.stderr is not None
        self._qemu.stderr.close()
        self._console.close()
        self._monitor.close()

    @property
    def pid(self) -> int:
        """QEMU's."""
        return self._qemu.pid

    def wait(self, mark: bytes = READY) -> None:
        """Until init has said a line. Raises RunFailed."""
        seen, deadline = b"", time.monotonic() + DEADLINE
        while mark not in seen:
            if not readable(self._console.fileno(), max(0.0, deadline - time.monotonic())):
                raise RunFailed(f"init does not say {mark!r} within {DEADLINE:g} s; the console: {seen[-800:]!r}")
            data = self._console.recv(65536)
            if not data:
                raise RunFailed(f"QEMU ended; the console: {seen[-800:]!r}")
            seen += data

    def ask(self) -> None:
        """A line to init, and its answer. Raises RunFailed."""
        self._console.sendall(b"\n")
        self.wait(ANSWER)

    def save(self, state_fd: int) -> None:
        """Stop, and write the devices' state: a template's way without what a template has for its clones. Raises HakoError."""
        qmp, events = self._session()
        qmp.execute("stop")
        qmp.execute("migrate-set-capabilities", capabilities=restore.CAPABILITIES)
        qmp.execute("getfd", fdname="state", fds=[state_fd])
        qmp.execute("migrate", uri="fd:state")
        if not events.wait(lambda: events.migration in MIGRATION_ENDS, DEADLINE) or events.migration != "completed":
            raise RunFailed(f"the floor's VM is not saved after {DEADLINE:g} s: {events.migration}")

    def load(self, state_fd: int) -> None:
        """Load the devices' state, and run. Raises HakoError."""
        qmp, events = self._session()
        restore.load(qmp, events, state_fd)
        qmp.execute("cont")

    def _session(self) -> tuple[Qmp, Events]:
        events = Events()
        qmp = Qmp(self._monitor.dup(), events.take)
        self._undo.callback(qmp.close)
        return qmp, events


def saved(lab: Lab, stack: Stack, directory: Path) -> template.Template:
    """A floor VM that was saved when its init had answered once; its files are as a template's. Raises RunFailed, HakoError."""
    directory.mkdir()
    raw, memory = directory / "raw", directory / template.MEMORY
    with open(raw, "xb") as ram, open(directory / template.STATE, "xb") as state:
        ram.truncate(lab.loaded(COLD, stack).hypervisor.default_memory << 20)
        with FloorVm(lab, stack, ram.fileno()) as vm:
            vm.wait()
            vm.ask()
            vm.save(state.fileno())
    subprocess.run(["cp", "--sparse=always", str(raw), str(memory)], check=True, timeout=60)
    raw.unlink()
    return template.Template("floor", str(directory))
