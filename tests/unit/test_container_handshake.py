"""The messages between the agent and the child."""

from __future__ import annotations

import os

import pytest

from agent.container import handshake
from agent.errors import DeadlineExceeded, StepError


def test_a_message_is_a_packet() -> None:
    """Two messages stay two, with their kinds and payloads."""
    ours, theirs = handshake.pair()
    theirs.send(handshake.PREPARED)
    theirs.send(handshake.PID, b"42")
    first, second = ours.receive(), ours.receive()
    assert first is not None and second is not None
    assert (first.kind, first.payload) == (handshake.PREPARED, b"")
    assert (second.kind, second.payload) == (handshake.PID, b"42")


def test_a_descriptor_travels_and_is_closed_on_exec() -> None:
    """The terminal's master goes from the child to the agent."""
    ours, theirs = handshake.pair()
    reader, writer = os.pipe()
    theirs.send(handshake.TERMINAL, fds=(writer,))
    message = ours.receive()
    assert message is not None
    os.write(message.fds[0], b"through")
    assert os.read(reader, 100) == b"through"
    assert not os.get_inheritable(message.fds[0])
    for fd in (reader, writer, message.fds[0]):
        os.close(fd)


def test_end_of_the_conversation() -> None:
    """The child's execve or death closes its end."""
    ours, theirs = handshake.pair()
    theirs.close()
    assert ours.receive() is None
    with pytest.raises(OSError):
        ours.send(handshake.START)


def test_a_failure_keeps_step_errno_path_and_detail() -> None:
    """What the child says is what the caller reads."""
    error = StepError("mount", 13, "/path/\udcff", "detail: with: colons")
    back = handshake.unpack_failure(handshake.pack_failure(error))
    assert (back.step, back.errno, back.path, back.detail) == (error.step, 13, error.path, error.detail)
    assert str(back) == str(error)


def test_a_failure_is_bounded() -> None:
    """A path of a megabyte must not make the report fail."""
    packed = handshake.pack_failure(StepError("s" * 10**6, 1, "p" * 10**6, "d" * 10**6))
    assert len(packed) < handshake.MAX_MESSAGE


def test_silence_ends() -> None:
    """The agent serves nobody while it waits, so it waits a bounded time."""
    ours, theirs = handshake.pair()
    with pytest.raises(DeadlineExceeded, match="setting up"):
        ours.receive_within(0.05, "setting up")
    theirs.close()
