"""binary:///PROGRAM?KEY=VALUE: a program that takes a container's output (containerd's logging convention).

Owns: its start, waiting until it says that it is ready. Must not know: what it does with the output. Called
by fifo.py.

The program gets KEY and VALUE of each part of the query as arguments, CONTAINER_ID and CONTAINER_NAMESPACE
in its environment, stdout on descriptor 3, stderr on 4, and closes 5 when it is ready. It ends by itself at
the end of its inputs.
"""

from __future__ import annotations

import os
import select
import sys
from typing import NamedTuple

from shim import process
from shim.errors import HakoError

READY_TIMEOUT = 10.0  # seconds
DEATH_MOMENT = 0.05  # seconds between the end of a dying process's pipes and its own


class Owner(NamedTuple):
    """Whose output it is."""

    container_id: str = ""
    namespace: str = ""


def start(uri: str, owner: Owner) -> tuple[int, int]:
    """Start the program; the writing ends for stdout and stderr. Raises HakoError if it does not become
    ready.
    """
    ours: list[int] = []
    theirs: list[int] = []
    for _ in range(2):
        read, write = os.pipe2(os.O_CLOEXEC)
        theirs.append(read)
        ours.append(write)
    ready, says_ready = os.pipe2(os.O_CLOEXEC)
    theirs.append(says_ready)
    try:
        child = process.spawn(_command(uri, theirs), fds=_named(theirs), env=_environment(owner))
        child.on_exit(lambda: None)  # reaps it
        _close(theirs)
        _await(ready, uri, child)
    except BaseException:
        _close(ours)
        raise
    finally:
        _close(theirs)
        os.close(ready)
    return ours[0], ours[1]


def _command(uri: str, fds: list[int]) -> list[str]:
    from urllib.parse import parse_qsl, unquote, urlsplit

    parts = urlsplit(uri)
    arguments = [word for pair in parse_qsl(parts.query, keep_blank_values=True) for word in pair if word]
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "logger_exec.py")
    return [sys.executable, "-IS", script, *map(str, fds), unquote(parts.path), *arguments]


def _named(fds: list[int]) -> dict[str, int]:
    return dict(zip(("stdout", "stderr", "ready"), fds, strict=True))


def _environment(owner: Owner) -> dict[str, str]:
    ids = {"CONTAINER_ID": owner.container_id, "CONTAINER_NAMESPACE": owner.namespace}
    return {**process.ENVIRONMENT, **ids}


def _await(ready: int, uri: str, child: process.Child) -> None:
    """Until it closes (or writes to) its ready pipe; its death closes it too, but is no readiness."""
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    if not poll.poll(READY_TIMEOUT * 1000):
        child.terminate(0)
        raise HakoError(f"the logger is not ready after {READY_TIMEOUT:.0f} s", step="stdio", object=uri)
    if child.wait(DEATH_MOMENT):
        raise child.failure()


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
