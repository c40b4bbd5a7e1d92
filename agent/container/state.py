"""The states of a container and which verb is legal in which.

Owns the table. Called by agent.container.container before every verb; the names are OCI's.
"""

from __future__ import annotations

from agent.errors import WrongState

CREATING, CREATED, RUNNING, PAUSED, STOPPED = range(5)
NAMES = ("creating", "created", "running", "paused", "stopped")

_ALIVE = frozenset((CREATED, RUNNING, PAUSED))
ALLOWED = {
    "start": frozenset((CREATED,)),
    "exec": frozenset((CREATED, RUNNING)),
    "signal": _ALIVE | {STOPPED},
    "pause": frozenset((CREATED, RUNNING)),
    "resume": frozenset((PAUSED,)),
    "update": _ALIVE,
    "stats": _ALIVE | {STOPPED},
    "pids": _ALIVE | {STOPPED},
    "remove": frozenset(range(5)),
}


def allows(status: int, verb: str) -> bool:
    """Whether `verb` is legal now."""
    return status in ALLOWED[verb]


def require(cid: str, status: int, verb: str) -> None:
    """Raise WrongState unless `verb` is legal now."""
    if status not in ALLOWED[verb]:
        raise WrongState(cid, NAMES[status], verb)
