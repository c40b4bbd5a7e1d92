"""Group `files`: reading through virtio-fs in a container, in a bare guest with the same daemon, and on the host itself.

Owns: the files and the shells that read them. The guests' caches are dropped before each run, so that what is read
comes from the host, whose own cache is warm; the host reads from that cache. The same busybox does all of it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.lab import COLD, Lab
from tests.bench.measure import RunFailed, readable
from tests.bench.rows import Row, Subject

BIG_MIB = 64
SMALL = 500
DEADLINE = 120.0
DROP = "echo 3 > /proc/sys/vm/drop_caches"
COMMANDS = {
    f"read {BIG_MIB} MiB": "dd if={0}/big of=/dev/null bs=1M 2>/dev/null",
    f"read {SMALL} files of 4 KiB": "cat {0}/small/* >/dev/null",
    f"stat {SMALL} files": "find {0}/small -size +1000",
}
CONTAINER, BARE, HOST = "{}: container", "{}: bare guest", "{}: host"


class Shell:
    """A shell that reads commands from `write_fd` and answers on `read_fd`."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._number = 0

    def run(self, line: str) -> float:
        """Seconds until the command has ended, which must succeed."""
        self._number += 1
        mark = f"done-{self._number}-".encode()
        begin = time.perf_counter()
        os.write(self._write_fd, f"{line}; echo done-{self._number}-$?.\n".encode())
        said = self._until(mark)
        seconds = time.perf_counter() - begin
        if mark + b"0." not in said:
            raise RunFailed(f"{line}: {said[-300:]!r}")
        return seconds

    def _until(self, mark: bytes) -> bytes:
        said, deadline = b"", time.monotonic() + DEADLINE
        while not (mark in said and said.rstrip().endswith(b".")):
            if not readable(self._read_fd, max(0.0, deadline - time.monotonic())):
                raise RunFailed(f"a shell does not answer within {DEADLINE:g} s; so far {said[-300:]!r}")
            piece = os.read(self._read_fd, 65536)
            if not piece:
                raise RunFailed(f"a shell ended: {said[-300:]!r}")
            said += piece
        return said


def open_group(lab: Lab) -> list[Subject]:
    """Every command in every place."""
    data = make_files(lab.directory / "data")
    places: list[tuple[str, Shell, str, bool]] = [
        (CONTAINER, container_shell(lab, data), "/data", True),
        (BARE, bare_shell(lab), lab.bare_guest.show(data), True),
        (HOST, host_shell(lab), str(data), False),
    ]
    return [
        Subject(place.format(what), reader(shell, words.format(path), drop=drop), alone=False)
        for what, words in COMMANDS.items()
        for place, shell, path, drop in places
    ]


def reader(shell: Shell, line: str, *, drop: bool) -> Callable[[], float]:
    """The command with cold caches of its machine's own."""

    def run() -> float:
        if drop:
            shell.run(DROP)
        return shell.run(line)

    return run


def make_files(directory: Path) -> Path:
    """A big file and many small ones."""
    (directory / "small").mkdir(parents=True)
    (directory / "big").write_bytes(os.urandom(1 << 20) * BIG_MIB)
    for number in range(SMALL):
        (directory / "small" / f"file{number:04}").write_bytes(os.urandom(4096))
    return directory


def container_shell(lab: Lab, data: Path, mode: str = COLD) -> Shell:
    """A shell in a container of an idle pod that may drop the guest's caches; `data` is its /data: shared, or an image."""
    pod = lab.idle_pod(mode, several=True)
    name = lab.unique("f")
    spec = lab.spec([], {}, "")
    mounts, linux = spec["mounts"], spec["linux"]
    assert isinstance(mounts, list) and isinstance(linux, dict)
    kind, options = ("bind", ["rbind", "ro"]) if data.is_dir() else ("erofs", ["ro"])
    mounts.append({"destination": "/data", "type": kind, "source": str(data), "options": options})
    linux |= {"readonlyPaths": [], "maskedPaths": [], "cgroupsPath": f"/bench/{name}"}
    pod.add(name, ["sleep", "1000000"], mounts=mounts, linux=linux)
    into, out = pod.fifo(f"{name}i"), pod.fifo(f"{name}o")
    fds = [os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in (out, into)]
    for fd in fds:
        lab.undo.callback(os.close, fd)
        os.set_blocking(fd, True)
    pod.exec(name, "shell", ["sh"], stdin=str(into), stdout=str(out))
    return Shell(*fds)


def bare_shell(lab: Lab) -> Shell:
    """The bare guest's."""
    sock: socket.socket = lab.bare_guest.shell()
    lab.undo.callback(sock.close)
    return Shell(sock.fileno(), sock.fileno())


def host_shell(lab: Lab) -> Shell:
    """One of this machine, in the busybox that the guests have."""
    child = subprocess.Popen(["/bin/busybox", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    lab.undo.callback(child.wait)
    lab.undo.callback(child.kill)
    assert child.stdin is not None and child.stdout is not None
    return Shell(child.stdout.fileno(), child.stdin.fileno())


ROWS = [
    row
    for what in COMMANDS
    for row in (
        Row(f"virtio-fs, {what}: speed over the bare guest's", CONTAINER.format(what), BARE.format(what), 0.9, 0.98, speed=True),
        Row(f"virtio-fs, {what}: speed over the host's own", CONTAINER.format(what), HOST.format(what), speed=True),
    )
]
