"""Shells that are told what to run, one line at a time: on the host, in the bare guest, in a container.

Owns: the conversation. Knows nothing of what is run. Used by groups that work inside of something.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

from tests.bench.lab import Lab
from tests.bench.measure import RunFailed, readable
from tests.bench.stacks import Stack

DEADLINE = 120.0


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

    def become(self, program: str) -> None:
        """From now on it is that busybox's, which runs its own applets (path for the shell)."""
        self.run(f"exec {program} sh -c 'echo done-{self._number + 1}-0.; exec {program} sh'")

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


def container_shell(lab: Lab, data: Path, mode: str, stack: Stack) -> Shell:
    """A shell in a container of an idle pod that may drop the guest's caches; `data` is its /data: shared, or an image."""
    pod = lab.idle_pod(mode, stack, several=True)
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


def bare_shell(lab: Lab, stack: Stack) -> Shell:
    """The bare guest's."""
    sock: socket.socket = lab.bare_guest(stack).shell()
    lab.undo.callback(sock.close)
    return Shell(sock.fileno(), sock.fileno())


def host_shell(lab: Lab) -> Shell:
    """One of this machine, in the busybox that the guests have."""
    child = subprocess.Popen(["/bin/busybox", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    lab.undo.callback(child.wait)
    lab.undo.callback(child.kill)
    assert child.stdin is not None and child.stdout is not None
    return Shell(child.stdout.fileno(), child.stdin.fileno())
