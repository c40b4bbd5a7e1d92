"""Which verb is legal in which state: the whole table."""

from __future__ import annotations

import pytest

from agent.container import state
from agent.container.state import CREATED, CREATING, PAUSED, RUNNING, STOPPED
from agent.errors import FAILED_PRECONDITION, WrongState

TABLE = {
    "start": {CREATED},
    "exec": {CREATED, RUNNING},
    "signal": {CREATED, RUNNING, PAUSED, STOPPED},
    "pause": {CREATED, RUNNING},
    "resume": {PAUSED},
    "update": {CREATED, RUNNING, PAUSED},
    "stats": {CREATED, RUNNING, PAUSED, STOPPED},
    "pids": {CREATED, RUNNING, PAUSED, STOPPED},
    "remove": {CREATING, CREATED, RUNNING, PAUSED, STOPPED},
}


@pytest.mark.parametrize("verb", TABLE)
@pytest.mark.parametrize("status", [CREATING, CREATED, RUNNING, PAUSED, STOPPED])
def test_verb_by_state(verb: str, status: int) -> None:
    """A verb out of its time is refused before anything happens, with the state's name and a wire code."""
    if status in TABLE[verb]:
        state.require("c1", status, verb)
        assert state.allows(status, verb)
        return
    with pytest.raises(WrongState, match=state.NAMES[status]) as caught:
        state.require("c1", status, verb)
    assert caught.value.code == FAILED_PRECONDITION
    assert not state.allows(status, verb)


def test_the_table_names_every_verb() -> None:
    """A new verb must be given its row here."""
    assert set(TABLE) == set(state.ALLOWED)
