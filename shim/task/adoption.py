"""How a process of the forkserver becomes like one that `start` has forked itself.

Owns: environment, command line as ps shows it, the talk with `start` until its go. Must not know: who made the process, what
a pod process does. Called in children of the forkserver (forkserver.py, waiting.py); none of them returns.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn

from shim import trace
from shim.task import forkclient
from shim.task.flags import Invocation
from shim.task.options import Options
from shim.task.podprocess import become_daemon

if TYPE_CHECKING:
    from _socket import socket

    from shim.sandbox.spare import Spare


def become_pod(
    caller: socket, job: dict[str, Any], listener: socket, token: socket | None, spare: Spare | None = None
) -> NoReturn:
    """Tell `start` who we are, and serve its pod when it says go. `token` is closed when the pod's first container runs."""
    try:
        adopt(job)
        caller.sendall(b"%0*d" % (forkclient.PID_DIGITS, os.getpid()))
        if caller.recv(1) != forkclient.GO:
            listener.close()
            _leave(job["path"], spare)
        caller.close()
    except BaseException:  # noqa: BLE001 - a forked child must not return into the parent's code
        os._exit(1)
    invocation, options = Invocation(), Options(*job["options"])
    for name, value in job["invocation"].items():
        setattr(invocation, name, value)
    started = token.close if token is not None else _nobody_asks
    become_daemon(listener, job["path"], invocation, job["sandbox"], job["bundle"], options, spare, started)


def _leave(path: str, spare: Spare | None) -> NoReturn:
    """`start` has ended without a go: it was killed, or has made a pod process itself, which has the socket then."""
    if spare is not None:
        spare.close()
    forkclient.discard(path)
    os._exit(0)


def _nobody_asks() -> None:
    """What `started` is where no pool waits for the end of this start."""


def adopt(job: dict[str, Any]) -> None:
    """Take over what a child of the caller would have inherited, and a command line that says which pod this is."""
    os.environ.clear()
    os.environ.update(job["environment"])
    trace.forget()
    trace.adopt_process_start(job["began"])
    invocation = job["invocation"]
    words = ["containerd-shim-hako-v2", "-namespace", invocation["namespace"], "-id", invocation["id"], "start"]
    write_command_line(words)


def write_command_line(words: list[str]) -> None:
    """What /proc/PID/cmdline and ps show: written over our own arguments, as far as there is room.

    arg_start and arg_end are fields 48 and 49 of /proc/PID/stat (proc(5)).
    """
    with open("/proc/self/stat", encoding="utf-8", errors="surrogateescape") as stream:
        fields = stream.read().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    text = b"\0".join(word.encode() for word in words)[: end - start - 1]
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(text.ljust(end - start, b"\0"))
