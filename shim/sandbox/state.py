"""The life of a container or exec as states, and which verb is legal in which.

Owns: the table. Must not know: what a verb does. Called by container.py before every verb; the numbers are
those of containerd's task API (containerd.v1.types.Status), so that State needs no translation.

    CREATING -> CREATED -> RUNNING <-> PAUSED
                   |          |          |
                   +----------+----------+--> STOPPED -> DELETED
"""

from __future__ import annotations

import enum

from shim.errors import NotFound, WrongState


class Status(enum.IntEnum):
    """Where a process is; CREATING and DELETED are never shown to an engine."""

    CREATING = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    DELETED = 6


_ALIVE = frozenset({Status.CREATED, Status.RUNNING, Status.PAUSED})

LEGAL: dict[str, frozenset[Status]] = {
    "start": frozenset({Status.CREATED}),
    "exec": frozenset({Status.CREATED, Status.RUNNING}),
    "kill": _ALIVE,
    "pause": frozenset({Status.RUNNING}),
    "resume": frozenset({Status.PAUSED}),
    "update": _ALIVE,
    "stats": _ALIVE,
    "resize": _ALIVE | {Status.CREATING},
    "delete": frozenset({Status.CREATED, Status.STOPPED}),
}


def allows(status: Status, verb: str) -> bool:
    """Whether `verb` is legal in `status`."""
    return status in LEGAL[verb]


def require(status: Status, verb: str, what: str) -> None:
    """Raise unless `verb` is legal in `status`; `what` names the container or exec.

    A kill of something that has ended is NotFound, as engines expect, everything else WrongState.
    """
    if allows(status, verb):
        return
    if verb == "kill" and status in (Status.STOPPED, Status.DELETED):
        raise NotFound("process already finished", object=what)
    raise WrongState(f"cannot {verb} a {status.name.lower()} process", object=what)
