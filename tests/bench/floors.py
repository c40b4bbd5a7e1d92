"""Group `floors`: what the ingredients of hako cost by themselves, on each stack and in the same run.

F_boot     QEMU's start until the first byte of a trivial init (busybox sh) on the console: hako's kernel, machine and command
           line, no share, no vsock, no agent.
F_restore  The same VM, saved when its init had answered a line, brought back by hand as a clone of hako's is: its RAM, a sparse
           file, copied while QEMU starts; the devices' state loaded; run; until init has answered a line on the console.
F_ping     64 bytes there and back over the stack's vsock device to a loop around recv and send in a bare guest (bare.py), the
           median of a hundred.
F_fork     fork, exec and wait of /bin/true by busybox sh, one of twenty in a loop: in the bare guest, warm, and on the host, for
           the peers.

Owns: these four. Other groups' rows refer to them.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from shim.sandbox.template import Copy, Template
from tests.bench.floorvm import FloorVm, saved
from tests.bench.lab import Lab
from tests.bench.measure import RunFailed
from tests.bench.rows import Row
from tests.bench.shells import Shell, bare_shell, host_shell
from tests.bench.stacks import Stack, on
from tests.bench.subjects import Subject, single

F_BOOT, F_RESTORE, F_PING, F_FORK, F_FORK_HOST = "F_boot", "F_restore", "F_ping", "F_fork", "F_fork on the host"
PINGS, FORKS = 100, 20
PAYLOAD = bytes(64)
LOOP = "i=0; while [ $i -lt {count} ]; do {program}; i=$((i+1)); done"


def boot(lab: Lab, stack: Stack) -> float:
    """Seconds from QEMU's start to the first byte of init."""
    begin = time.perf_counter()
    with FloorVm(lab, stack) as vm:
        vm.wait()
        return time.perf_counter() - begin


def restored(lab: Lab, stack: Stack, template: Template) -> float:
    """Seconds from the beginning of the copy to init's answer."""
    begin = time.perf_counter()
    copy = Copy(template)
    try:
        with FloorVm(lab, stack, copy.memory_fd, incoming=True) as vm:
            copy.finish()
            vm.load(copy.state_fd)
            vm.ask()
            return time.perf_counter() - begin
    finally:
        copy.close()
        copy.free()


@contextmanager
def idle(lab: Lab, stack: Stack) -> Iterator[int]:
    """QEMU's pid of a floor VM that does nothing."""
    with FloorVm(lab, stack) as vm:
        vm.wait()
        yield vm.pid


def median(call: Callable[[], object], count: int = PINGS) -> float:
    """Of the seconds that each of `count` calls takes."""
    taken = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def ping(sock: socket.socket) -> None:
    """There and back. Raises RunFailed."""
    sock.sendall(PAYLOAD)
    left = len(PAYLOAD)
    while left:
        data = sock.recv(left)
        if not data:
            raise RunFailed("the echo has hung up")
        left -= len(data)


def fork(shell: Shell, program: str) -> float:
    """Seconds for one of FORKS runs of `program`."""
    return shell.run(LOOP.format(count=FORKS, program=program)) / FORKS


def host_true(directory: Path) -> str:
    """busybox as `true`, which is the guests' too."""
    path = directory / "true"
    path.symlink_to("/bin/busybox")
    return str(path)


def alone(lab: Lab) -> list[Subject]:
    """The host's."""
    if not os.path.basename(lab.guest.kernel).startswith("vmlinux"):
        lab.without("our own kernel", "the figures are for the distribution's: make kernel")
    return [single(F_FORK_HOST, partial(fork, host_shell(lab), host_true(lab.directory)), repeats=FORKS)]


def on_stack(lab: Lab, stack: Stack) -> list[Subject]:
    """All others."""
    template = saved(lab, stack, lab.directory / f"floor{lab.stacks.index(stack)}")
    echo = lab.bare_guest(stack).echo()
    lab.undo.callback(echo.close)
    return [
        single(on(F_BOOT, stack), partial(boot, lab, stack)),
        single(on(F_RESTORE, stack), partial(restored, lab, stack, template)),
        single(on(F_PING, stack), partial(median, partial(ping, echo)), repeats=PINGS),
        single(on(F_FORK, stack), partial(fork, bare_shell(lab, stack), "/bin/true"), repeats=FORKS),
    ]


ROWS = [
    Row("F_restore over F_boot", F_RESTORE, F_BOOT),
    Row("F_fork, emulated over the host's", F_FORK, F_FORK_HOST),
]
