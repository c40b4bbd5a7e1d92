"""Calls of the agent that are begun and waited for later: errors, time-outs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from agent.api import agent_pb2
from agent.ttrpc.call import Deferred
from shim import errors
from tests.framework.fakeguest import FakeAgent


@pytest.fixture
def agent() -> Iterator[FakeAgent]:
    """An agent with a container that ran to its end at once."""
    agent = FakeAgent()
    yield agent
    agent.close()


def start(container_id: str) -> agent_pb2.StartContainerRequest:
    """A request that is refused unless that container was created."""
    return agent_pb2.StartContainerRequest(container_id=container_id)


def test_a_refusal_is_raised_by_whoever_waits(agent: FakeAgent) -> None:
    """Not when it is begun; and nobody is told that it has been answered."""
    told = threading.Event()
    wait = agent.client.begin("StartContainer", start("nobody"), on_answer=told.set)
    with pytest.raises(errors.NotFound):
        wait()
    assert not told.is_set()


def test_the_answer_is_told_at_once(agent: FakeAgent) -> None:
    """Without anybody who waits."""
    told = threading.Event()
    agent.client.begin("RemoveContainer", agent_pb2.RemoveContainerRequest(container_id="c"), on_answer=told.set)
    assert told.wait(10)


def test_silence_is_bounded(agent: FakeAgent) -> None:
    """The wait is as long as it was told to be, and says for which call."""
    wait = agent.client.begin("GetOOMEvent", agent_pb2.GetOOMEventRequest(), timeout=0.1)
    with pytest.raises(errors.Timeout, match="GetOOMEvent"):
        wait()
    assert isinstance(agent.oom_waiters[0], Deferred)


def test_a_connection_that_has_ended(agent: FakeAgent) -> None:
    """Whether it ends before the call or while it is waited for."""
    wait = agent.client.begin("GetOOMEvent", agent_pb2.GetOOMEventRequest(), timeout=10)
    agent.close()
    with pytest.raises(errors.Unavailable):
        wait()
    with pytest.raises(errors.Unavailable):
        agent.client.begin("StartContainer", start("c"))()
