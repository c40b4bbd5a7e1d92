"""Which verb is legal in which state: the whole table, and the error that a refusal is."""

from __future__ import annotations

import pytest

from shim.errors import NotFound, WrongState
from shim.sandbox.state import LEGAL, Status, allows, require

C, R, S, P, D, X = (
    Status.CREATED, Status.RUNNING, Status.STOPPED, Status.PAUSED, Status.DELETED, Status.CREATING
)  # fmt: skip
TABLE = {
    #          CREATING CREATED RUNNING PAUSED STOPPED DELETED
    "start":  (0, 1, 0, 0, 0, 0),
    "exec":   (0, 1, 1, 0, 0, 0),
    "kill":   (0, 1, 1, 1, 0, 0),
    "pause":  (0, 0, 1, 0, 0, 0),
    "resume": (0, 0, 0, 1, 0, 0),
    "update": (0, 1, 1, 1, 0, 0),
    "stats":  (0, 1, 1, 1, 0, 0),
    "resize": (1, 1, 1, 1, 0, 0),
    "delete": (0, 1, 0, 0, 1, 0),
}  # fmt: skip


def test_the_table_covers_every_verb() -> None:
    """A new verb needs its row."""
    assert set(TABLE) == set(LEGAL)


@pytest.mark.parametrize("verb", TABLE)
def test_every_verb_in_every_state(verb: str) -> None:
    """Legal exactly where the table says; a kill of what has ended is NotFound, all else WrongState."""
    for legal, status in zip(TABLE[verb], (X, C, R, P, S, D), strict=True):
        assert allows(status, verb) == bool(legal)
        if legal:
            require(status, verb, "c1")
            continue
        ended = verb == "kill" and status in (S, D)
        with pytest.raises(NotFound if ended else WrongState, match="c1"):
            require(status, verb, "c1")


def test_the_numbers_are_containerds() -> None:
    """State answers them without translation."""
    assert (int(C), int(R), int(S), int(P)) == (1, 2, 3, 4)
