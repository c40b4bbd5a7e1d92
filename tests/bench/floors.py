"""F_boot: QEMU with our kernel to a trivial init, nothing of hako in it but the machine's command line.

Owns: that boot. Knows no pods. The machine is the one that shim/hypervisor/qemu/argv.py makes for a VM without share,
vsock and network cards, hot-plug ports included: what any VM of hako must pay, and nothing that hako's own work costs.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shim import config as configuration
from shim.hypervisor.base import VmSpec
from shim.hypervisor.qemu import argv
from tests.bench.lab import COLD, Lab
from tests.bench.measure import RunFailed, readable
from tests.bench.rows import Row, Subject

F_BOOT = "F_boot"
READY = b"hako-floor: ready"
DEADLINE = 60.0


class FloorVm:
    """`with` it: QEMU runs. `wait` for its init."""

    def __init__(self, lab: Lab) -> None:
        self._image = lab.floor_image
        self._kernel = lab.guest.kernel
        self._config = configuration.load(str(lab.configs[COLD])).hypervisor

    def __enter__(self) -> FloorVm:
        self._console, console = socket.socketpair()
        self._qmp, qmp = socket.socketpair()
        kernel, image = (os.open(path, os.O_RDONLY) for path in (self._kernel, self._image))
        fds = argv.Fds(qmp.fileno(), console.fileno(), kernel, disks=(image,))
        self._qemu = subprocess.Popen(
            self._command(fds), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
            pass_fds=[qmp.fileno(), console.fileno(), kernel, image],
        )  # fmt: skip
        for end in (console, qmp):
            end.close()
        os.close(kernel)
        os.close(image)
        return self

    def _command(self, fds: argv.Fds) -> list[str]:
        """With the options of the configuration that cold pods have."""
        config = self._config
        options = argv.Options(
            config.path, config.machine_type, config.cpu_model, config.tcg_tb_size, config.hotplug_ports,
            config.seccomp_sandbox,
        )  # fmt: skip
        spec = VmSpec(
            name="floor", uuid="00000000-0000-4000-8000-000000000002", kernel=self._kernel, image=self._image,
            memory_mib=config.default_memory,
        )  # fmt: skip
        return argv.command(spec, fds, options)

    def __exit__(self, *_: object) -> None:
        self._qemu.kill()
        self._qemu.wait()
        assert self._qemu.stderr is not None
        self._qemu.stderr.close()
        self._console.close()
        self._qmp.close()

    @property
    def pid(self) -> int:
        """QEMU's."""
        return self._qemu.pid

    def wait(self) -> None:
        """Until init's first line. Raises RunFailed."""
        seen, deadline = b"", time.monotonic() + DEADLINE
        while READY not in seen:
            if not readable(self._console.fileno(), max(0.0, deadline - time.monotonic())):
                raise RunFailed(f"no init after {DEADLINE:g} s; the console: {seen[-800:]!r}")
            data = self._console.recv(65536)
            if not data:
                raise RunFailed(f"QEMU ended; the console: {seen[-800:]!r}")
            seen += data


def boot(lab: Lab) -> float:
    """Seconds from QEMU's start to the first byte of init."""
    begin = time.perf_counter()
    with FloorVm(lab) as vm:
        vm.wait()
        return time.perf_counter() - begin


@contextmanager
def idle(lab: Lab) -> Iterator[int]:
    """QEMU's pid of such a VM that does nothing."""
    with FloorVm(lab) as vm:
        vm.wait()
        yield vm.pid


def open_group(lab: Lab) -> list[Subject]:
    """The floor alone; other groups' rows refer to it."""
    if not os.path.basename(lab.guest.kernel).startswith("vmlinux"):
        lab.without("our own kernel", "the figures are for the distribution's: make kernel")
    return [Subject(F_BOOT, lambda: boot(lab))]


ROWS: list[Row] = []
