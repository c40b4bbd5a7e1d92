"""Raw stdio streams between accept and claim."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import streams
from agent.errors import InvalidSpec
from agent.linux import vsock
from agent.linux.loop import Loop
from agent.streams import Streams


def is_closed(client: socket.socket) -> bool:
    """The agent closed it; with bytes of ours unread, that is a reset."""
    client.settimeout(2)
    try:
        return client.recv(10) == b""
    except ConnectionResetError:
        return True


class Fixture:
    def __init__(self, path: str) -> None:
        self.path = path
        self.loop = Loop()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(64)
        self.streams = Streams(self.loop, listener)

    def connect(self, greeting: bytes) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.path)
        client.sendall(greeting)
        return client

    def turn(self, count: int = 5) -> None:
        for _ in range(count):
            self.loop.run_once(0.005)


@pytest.fixture
def t(tmp_path: Path) -> Iterator[Fixture]:
    fixture = Fixture(str(tmp_path / "stdio"))
    yield fixture
    fixture.loop.close()


def test_stream_is_claimed_by_its_port_with_all_that_follows_the_greeting(t: Fixture) -> None:
    """The first line names the port; the bytes after it belong to the stream."""
    client = t.connect(b"PORT 7\ndata")
    t.turn()
    fd = t.streams.claim(7, "stdin_port")
    assert os.read(fd, 100) == b"data"
    os.write(fd, b"back")
    assert client.recv(100) == b"back"
    os.close(fd)


def test_request_may_be_served_before_the_connection_was_noticed(t: Fixture) -> None:
    """claim() finds a connection that is still in the listener's backlog."""
    clients = [t.connect(b"PORT %d\n" % port) for port in (1, 2, 3)]
    fds = [t.streams.claim(port, "stdout_port") for port in (3, 1, 2)]
    assert len(set(fds)) == 3
    for fd in fds:
        os.close(fd)
    assert len(clients) == 3


def test_unknown_port_is_refused_with_the_field(t: Fixture) -> None:
    """A number that nobody came with, or that was claimed, is an error of the request."""
    t.connect(b"PORT 7\n")
    os.close(t.streams.claim(7, "stdin_port"))
    with pytest.raises(InvalidSpec, match="stderr_port: no stream has come as PORT 7"):
        t.streams.claim(7, "stderr_port")


@pytest.mark.parametrize("greeting", [b"HELLO 7\n", b"PORT x\n", b"PORT 7" + b"0" * 20, b"PORT 7 8\n"])
def test_bad_greeting_is_dropped(t: Fixture, greeting: bytes) -> None:
    """A connection that does not say its port is closed at once."""
    client = t.connect(greeting)
    t.turn()
    assert is_closed(client)


def test_greeting_may_come_in_pieces(t: Fixture) -> None:
    """A greeting that is not complete yet is waited for; one that is cut off is dropped."""
    client, cut = t.connect(b"POR"), t.connect(b"PO")
    t.turn()
    client.sendall(b"T 9\nx")
    cut.close()
    t.turn()
    fd = t.streams.claim(9, "stdin_port")
    assert os.read(fd, 10) == b"x"
    os.close(fd)
    assert not t.streams._greeting


def test_unclaimed_streams_are_closed_in_time(t: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can park connections in the agent: neither with a greeting nor without."""
    monkeypatch.setattr(streams, "UNCLAIMED_SECONDS", 0.02)
    clients = [t.connect(b"PORT 7\n"), t.connect(b"")]
    deadline = time.monotonic() + 3
    t.turn(2)
    while (t.streams._unclaimed or t.streams._greeting) and time.monotonic() < deadline:
        t.turn(1)
    for client in clients:
        assert is_closed(client)


def test_number_of_unclaimed_streams_is_bounded(t: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a new connection is closed; those that wait stay."""
    monkeypatch.setattr(streams, "MAX_UNCLAIMED", 2)
    clients = [t.connect(b"PORT %d\n" % port) for port in (1, 2, 3)]
    t.turn()
    assert is_closed(clients[2])
    os.close(t.streams.claim(1, "f"))


def test_port_that_comes_again_is_the_newer_connection(t: Fixture) -> None:
    """Of two streams with one number the newer counts, and the older is dropped."""
    old = t.connect(b"PORT 7\nold")
    t.turn()
    t.connect(b"PORT 7\nnew")
    t.turn()
    fd = t.streams.claim(7, "f")
    assert os.read(fd, 10) == b"new"
    os.close(fd)
    assert old.fileno() >= 0


def test_close_drops_what_waits(t: Fixture) -> None:
    """After close() nothing is left open."""
    client = t.connect(b"PORT 7\n")
    t.turn()
    t.streams.close()
    assert is_closed(client)


def test_only_the_host_may_use_vsock_ports() -> None:
    """A vsock peer in the guest itself (loopback, own CID) is refused; other families have permissions."""
    assert vsock.is_host(socket.AF_VSOCK, (2, 5000))
    assert not vsock.is_host(socket.AF_VSOCK, (1, 5000))
    assert not vsock.is_host(socket.AF_VSOCK, (3, 5000))
    assert vsock.is_host(socket.AF_UNIX, "")


def test_a_frame_of_output_may_be_on_its_way() -> None:
    """Connections take the listening socket's size over (vsock(7)); the host's daemon counts on it."""
    try:
        listener = vsock.listen(54321)
    except OSError as exc:
        pytest.skip(f"no AF_VSOCK here: {exc}")
    try:
        assert listener.getsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE) == vsock.BUFFER
    finally:
        listener.close()
