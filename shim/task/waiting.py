"""A process of the pool: it makes a VM, waits for a pod that wants it, and becomes that pod's process.

Owns: that life, and ending without a trace when the forkserver goes, when it is told to, or when its VM dies. Must not
know: how many others there are (pool.py), how the VM is made (shim/sandbox/spare.py). Runs in a child of the forkserver.

    to the forkserver      READY, or why there is no VM
    from the forkserver    the job as JSON, with two descriptors: the pod's listening socket, the connection of `start`

Messages are packets on a socket pair; its end is the wish that the process ends. Once there is a job, our end stays open
until the pod's first container runs: so the forkserver sees that a pod is starting.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import threading
from _socket import CMSG_SPACE, SCM_RIGHTS, SOL_SOCKET, socket
from typing import TYPE_CHECKING, NoReturn

from shim.errors import HakoError
from shim.log import Log
from shim.sandbox import spare as spares
from shim.task import adoption

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.config import Config
    from shim.sandbox.spare import Spare

    Make = Callable[[Config, Callable[[str, str], None]], Spare]

READY = b"ready"
COMMAND_LINE = ["containerd-shim-hako-v2", "pool"]
MESSAGE_LIMIT = 1 << 18
PATIENCE = 5.0  # seconds for `start` to say go


def main(sock: socket, config: Config, make: Make = spares.make) -> NoReturn:
    """Never returns."""
    try:
        adoption.write_command_line(COMMAND_LINE)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            spare = make(config, Log(config.runtime.log_level))
        except (HakoError, OSError) as exc:
            sock.send(str(exc).encode()[:4096])
            os._exit(1)
        _Waiting(sock, spare).wait()
    except BaseException as exc:  # noqa: BLE001 - a forked child must not return into the parent's code
        Log("error")("error", f"a process of the pool: {exc!r}")
        os._exit(1)


class _Waiting:
    def __init__(self, sock: socket, spare: Spare) -> None:
        self._sock = sock
        self._spare = spare
        self._first = threading.Lock()
        """Taken by whatever comes first, for ever: a job, the end of the forkserver, the end of the VM"""

    def wait(self) -> NoReturn:
        self._spare.fate.tell(self._vm_ended)
        message, control = self._await_job()
        if not self._first.acquire(blocking=False):
            signal.pause()  # the other thread ends the process
        if not message:
            self._end(0)
        listener, caller = _sockets(control)
        listener.settimeout(None)
        caller.settimeout(PATIENCE)  # both are as non-blocking as their other owners left them
        adoption.become_pod(caller, json.loads(message), listener, self._sock, self._spare)

    def _await_job(self) -> tuple[bytes, list[tuple[int, int, bytes]]]:
        """A job, or nothing: the forkserver has gone or wants us to."""
        try:
            self._sock.send(READY)
            return self._sock.recvmsg(MESSAGE_LIMIT, CMSG_SPACE(8))[:2]
        except OSError:
            return b"", []

    def _vm_ended(self, reason: str) -> None:
        """In a thread. A pod that has the VM already is told by other means."""
        if self._first.acquire(blocking=False):
            Log("warn")("warn", f"a VM of the pool has ended: {reason}")
            self._end(1)

    def _end(self, status: int) -> NoReturn:
        try:
            self._spare.close()
        finally:
            os._exit(status)


def _sockets(control: list[tuple[int, int, bytes]]) -> list[socket]:
    data = b"".join(value for level, kind, value in control if (level, kind) == (SOL_SOCKET, SCM_RIGHTS))
    return [socket(fileno=fd) for fd in struct.unpack("2i", data)]
