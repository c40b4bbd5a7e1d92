"""Run a function in a forked child: for what changes a process for good (seccomp, namespaces, mounts).

Owns: the fork, the pipe that carries the result or the traceback, and the child's end within a deadline.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class ChildDied(AssertionError):
    """The child ended by `signum` (or exited with `status`) before it gave a result."""

    def __init__(self, status: int) -> None:
        self.signum = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        super().__init__(f"the child ended without a result: wait status {status:#x}")


def run(function: Callable[[], Result], seconds: float = 20) -> Result:
    """`function()` as computed in a child; AssertionError with the child's traceback where it raised."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _answer(function, writer)
    os.close(writer)
    data = _read(reader, pid, seconds)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    if not data:
        raise ChildDied(status)
    kind, value = pickle.loads(data)
    assert kind == "result", value
    result: Result = value
    return result


def _answer(function: Callable[[], Any], writer: int) -> None:
    try:
        answer: tuple[str, Any] = ("result", function())
    except BaseException:  # noqa: BLE001 - the parent reports it
        answer = ("traceback", traceback.format_exc())
    data = pickle.dumps(answer)
    while data:
        data = data[os.write(writer, data) :]
    os._exit(0)


def _read(reader: int, pid: int, seconds: float) -> bytes:
    data = b""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while True:
        if not poll.poll(seconds * 1000):
            os.kill(pid, signal.SIGKILL)
        piece = os.read(reader, 65536)
        if not piece:
            return data
        data += piece
