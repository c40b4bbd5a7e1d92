"""The ttrpc server against raw sockets: good peers, and peers that misbehave."""

from __future__ import annotations

import socket
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.api import health_pb2
from agent.linux.loop import Loop
from agent.linux.vsock import PACKET_MAX
from agent.ttrpc import connection, frames, status
from agent.ttrpc import server as server_module
from agent.ttrpc.frames import Decoder, Frame, encode
from agent.ttrpc.server import Call, Deferred, Server
from agent.ttrpc.ttrpc_pb2 import KeyValue, Request, Response

ROOT = Path(__file__).resolve().parents[2]

Check = health_pb2.CheckRequest
Reply = health_pb2.HealthCheckResponse


class Peer:
    """A raw client on a socketpair, driven together with the loop from one thread."""

    def __init__(self, loop: Loop, server: Server) -> None:
        self.loop = loop
        theirs, self.sock = socket.socketpair()
        server.attach(theirs)
        self.decoder = Decoder()
        self.sock.settimeout(0)
        self.eof = False

    def request(
        self, stream_id: int, method: str, service: str = "t.T", flags: int = 0, **more: Any
    ) -> bytes:
        payload = more.pop("payload", Check(service="x").SerializeToString())
        body = Request(service=service, method=method, payload=payload, **more).SerializeToString()
        return encode(stream_id, frames.REQUEST, flags, body)

    def send(self, data: bytes) -> None:
        while data:
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                self.loop.run_once(0.01)

    def frames(self, count: int = 1) -> list[Frame]:
        """The next `count` frames; fewer if the server falls silent or closes."""
        got: list[Frame] = []
        for _ in range(400):
            if len(got) >= count or self.eof:
                break
            self.loop.run_once(0.005)
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                continue
            self.eof = not data
            got += self.decoder.feed(data)
        return got

    def is_quiet(self) -> bool:
        """True if nothing comes."""
        for _ in range(5):
            self.loop.run_once(0.004)
        try:
            return not self.sock.recv(1 << 20)
        except BlockingIOError:
            return True

    def answer(self) -> tuple[int, int, str]:
        """Stream id, status code and message of the next answer."""
        [frame] = self.frames()
        assert (frame.type, frame.flags) == (frames.RESPONSE, 0)
        response = Response.FromString(frame.payload)
        return frame.stream_id, response.status.code, response.status.message


class Fixture:
    def __init__(self) -> None:
        self.loop = Loop()
        self.errors: list[tuple[Exception, str]] = []
        self.calls: list[Call] = []
        self.deferred: list[Deferred] = []
        self.cancelled: list[int] = []
        services = {
            "t.T": {
                "Echo": (Check, self.echo),
                "Later": (Check, self.later),
                "Refuse": (Check, self.refuse),
                "Crash": (Check, self.crash),
                "Nothing": (Check, lambda request, call: None),
                "Big": (Check, lambda request, call: Check(service="x" * int(request.service))),
            }
        }
        self.server = Server(
            self.loop, services, on_error=lambda exc, where: self.errors.append((exc, where))
        )

    def peer(self) -> Peer:
        return Peer(self.loop, self.server)

    def echo(self, request: Any, call: Call) -> Any:
        self.calls.append(call)
        return Reply(status=Reply.SERVING)

    def later(self, request: Any, call: Call) -> Deferred:
        deferred = Deferred()
        number = len(self.deferred)
        deferred.on_cancel(lambda: self.cancelled.append(number))
        self.deferred.append(deferred)
        return deferred

    def refuse(self, request: Any, call: Call) -> Any:
        raise status.RpcError(status.NOT_FOUND, "no such thing")

    def crash(self, request: Any, call: Call) -> Any:
        raise ValueError("a bug")


@pytest.fixture
def t() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.server.close()
    fixture.loop.close()


def test_unary_call_is_answered_on_its_stream(t: Fixture) -> None:
    """One response frame with flags 0 and no status; the handler sees metadata and time-out."""
    peer = t.peer()
    metadata = [KeyValue(key="k", value="1"), KeyValue(key="k", value="2")]
    peer.send(peer.request(1, "Echo", metadata=metadata, timeout_nano=1_500_000_000))
    [frame] = peer.frames()
    response = Response.FromString(frame.payload)
    assert (frame.stream_id, frame.type, frame.flags) == (1, frames.RESPONSE, 0)
    assert not response.HasField("status")
    assert Reply.FromString(response.payload).status == Reply.SERVING
    [call] = t.calls
    assert (call.service, call.method, call.metadata, call.timeout) == ("t.T", "Echo", {"k": ["1", "2"]}, 1.5)


def test_request_closed_by_its_client_is_unary_too(t: Fixture) -> None:
    """Flag 0x01 (remote closed) on a request is accepted."""
    peer = t.peer()
    peer.send(peer.request(1, "Echo", flags=frames.REMOTE_CLOSED))
    assert peer.answer()[1] == status.OK


@pytest.mark.parametrize(
    ("request_of", "code", "text"),
    [
        (lambda p: p.request(1, "Echo", service="t.None"), status.UNIMPLEMENTED, "service t.None"),
        (lambda p: p.request(1, "None"), status.UNIMPLEMENTED, "method None"),
        (lambda p: p.request(1, "Refuse"), status.NOT_FOUND, "no such thing"),
        (lambda p: p.request(1, "Crash"), status.UNKNOWN, "a bug"),
        (lambda p: p.request(1, "Nothing"), status.UNKNOWN, "no message"),
        (lambda p: p.request(1, "Echo", payload=b"\xff"), status.INVALID_ARGUMENT, "t.T/Echo"),
        (lambda p: encode(1, frames.REQUEST, 0, b"\xff\xff"), status.INVALID_ARGUMENT, "request"),
        (lambda p: p.request(2, "Echo"), status.INVALID_ARGUMENT, "not odd"),
        (lambda p: p.request(0, "Echo"), status.INVALID_ARGUMENT, "not odd"),
        (lambda p: p.request(1, "Echo", flags=frames.REMOTE_OPEN), status.UNIMPLEMENTED, "streaming"),
        (lambda p: encode(1, frames.DATA, 0, b"x"), status.INVALID_ARGUMENT, "not open"),
        (
            lambda p: p.request(1, "Big", payload=Check(service=str(5 << 20)).SerializeToString()),
            status.RESOURCE_EXHAUSTED,
            "over",
        ),
    ],
)
def test_bad_request_fails_alone(
    t: Fixture, request_of: Callable[[Peer], bytes], code: int, text: str
) -> None:
    """A call that goes wrong gets a status, and the connection serves the next one."""
    peer = t.peer()
    peer.send(request_of(peer))
    _stream, got, message = peer.answer()
    assert got == code
    assert text in message
    peer.send(peer.request(3, "Echo"))
    assert peer.answer()[:2] == (3, status.OK)


def test_only_failures_without_a_status_are_reported(t: Fixture) -> None:
    """on_error gets a handler's bug with its method, not an answer that the handler chose."""
    peer = t.peer()
    peer.send(peer.request(1, "Refuse") + peer.request(3, "Crash"))
    assert len(peer.frames(2)) == 2
    assert [(type(exc), where) for exc, where in t.errors] == [(ValueError, "t.T/Crash")]


def test_reused_and_falling_stream_ids_are_refused(t: Fixture) -> None:
    """Stream ids must rise; the offender is answered on the id it used."""
    peer = t.peer()
    peer.send(peer.request(5, "Echo"))
    assert peer.answer()[:2] == (5, status.OK)
    peer.send(peer.request(5, "Echo"))
    assert peer.answer()[:2] == (5, status.INVALID_ARGUMENT)
    peer.send(peer.request(3, "Echo"))
    assert peer.answer()[:2] == (3, status.INVALID_ARGUMENT)


def test_oversize_request_fails_its_stream_only(t: Fixture) -> None:
    """A request over 4 MiB is RESOURCE_EXHAUSTED, its body is thrown away, and the connection goes on."""
    peer = t.peer()
    length = frames.MAX_PAYLOAD + 1
    peer.send(length.to_bytes(4, "big") + bytes.fromhex("00000001 01 00"))
    assert peer.answer()[:2] == (1, status.RESOURCE_EXHAUSTED)
    peer.send(bytes(length) + peer.request(3, "Echo"))
    assert peer.answer()[:2] == (3, status.OK)


def test_garbage_is_survived(t: Fixture) -> None:
    """A peer that speaks another protocol gets nothing, costs nothing, and others are served."""
    wild, tame = t.peer(), t.peer()
    wild.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
    tame.send(tame.request(1, "Echo"))
    assert tame.answer()[:2] == (1, status.OK)
    assert wild.is_quiet()


@pytest.mark.parametrize("cut", [3, 10, 14])
def test_truncated_frame_ends_quietly(t: Fixture, cut: int) -> None:
    """A peer that dies within a frame is dropped."""
    peer = t.peer()
    peer.send(peer.request(1, "Echo")[:cut])
    peer.sock.shutdown(socket.SHUT_WR)
    assert peer.frames() == []
    assert peer.eof
    assert t.server.connections == 0


def test_long_poll_does_not_block_the_connection(t: Fixture) -> None:
    """A deferred answer comes when it is resolved, later calls overtake it, and it is sent once."""
    peer = t.peer()
    peer.send(peer.request(1, "Later") + peer.request(3, "Echo"))
    assert peer.answer()[0] == 3
    t.deferred[0].resolve(Reply(status=Reply.SERVING))
    t.deferred[0].fail(ValueError("too late"))
    assert peer.answer() == (1, status.OK, "")
    assert peer.is_quiet()


def test_deferred_failure_becomes_a_status(t: Fixture) -> None:
    """fail() answers with the exception's code."""
    peer = t.peer()
    peer.send(peer.request(1, "Later"))
    assert peer.is_quiet()
    t.deferred[0].fail(status.RpcError(status.NOT_FOUND, "gone"))
    assert peer.answer() == (1, status.NOT_FOUND, "gone")


def test_deadline_is_kept_by_the_server(t: Fixture) -> None:
    """When timeout_nano is over, DEADLINE_EXCEEDED is answered and the handler's on_cancel is called."""
    peer = t.peer()
    peer.send(peer.request(1, "Later", timeout_nano=1_000_000))
    stream, code, text = peer.answer()
    assert (stream, code) == (1, status.DEADLINE_EXCEEDED)
    assert "Later" in text
    assert t.cancelled == [0]
    t.deferred[0].resolve(Reply())
    assert peer.is_quiet()


def test_closed_connection_cancels_its_long_polls_only(t: Fixture) -> None:
    """on_cancel runs for the requests of the peer that went away, not for another's."""
    gone, stays = t.peer(), t.peer()
    gone.send(gone.request(1, "Later"))
    assert gone.is_quiet()
    stays.send(stays.request(1, "Later"))
    assert stays.is_quiet()
    gone.sock.close()
    assert stays.is_quiet()
    assert t.cancelled == [0]
    t.deferred[1].resolve(Reply())
    assert stays.answer()[:2] == (1, status.OK)


def test_slow_reader_blocks_nobody_and_is_not_read_from(t: Fixture) -> None:
    """Requests of a peer that does not read wait when enough answers do; another peer is served meanwhile."""
    slow, quick = t.peer(), t.peer()
    big = Check(service=str(3 << 20)).SerializeToString()
    slow.send(b"".join(slow.request(i, "Big", payload=big) for i in range(1, 41, 2)))
    for _ in range(50):
        t.loop.run_once(0)
    assert t.server.unsent <= connection.OUTPUT_HIGH + frames.MAX_PAYLOAD
    quick.send(quick.request(1, "Echo"))
    assert quick.answer()[:2] == (1, status.OK)
    assert [frame.stream_id for frame in slow.frames(20)] == list(range(1, 41, 2))


def test_peer_that_never_reads_its_long_polls_is_dropped(t: Fixture) -> None:
    """Answers of pending requests that nobody reads do not grow without bound: the connection is closed."""
    peer = t.peer()
    peer.send(b"".join(peer.request(i, "Later") for i in range(1, 41, 2)))
    while len(t.deferred) < 20:
        t.loop.run_once(0.01)
    for deferred in t.deferred:
        deferred.resolve(Check(service="x" * (3 << 20)))
    assert t.server.connections == 0


def test_no_send_is_larger_than_a_packet() -> None:
    """A large answer goes in sends that every vsock device takes."""
    loop = Loop()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        connection.Connection(loop, ours, lambda frame: None, lambda: None).send(1, frames.RESPONSE, 0, bytes(100_000))
        theirs.settimeout(5)
        sizes = [len(theirs.recv(1 << 20)) for _ in range(4)]
    loop.close()
    assert sum(sizes) == 100_000 + frames.HEADER_SIZE and max(sizes) <= PACKET_MAX


def test_too_many_pending_requests_are_refused(t: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """One peer cannot make us remember requests without end."""
    monkeypatch.setattr(server_module, "MAX_PENDING", 2)
    peer = t.peer()
    peer.send(b"".join(peer.request(i, "Later") for i in (1, 3, 5)))
    assert peer.answer()[:2] == (5, status.RESOURCE_EXHAUSTED)


def test_listening_socket_accepts_several_peers(t: Fixture, tmp_path: Path) -> None:
    """listen() serves every client that connects, at the same time."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    t.server.listen(listener)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for client in clients:
        client.connect(str(tmp_path / "s"))
    for _ in range(10):
        t.loop.run_once(0.01)
    assert t.server.connections == 3
    t.server.close()
    assert t.server.connections == 0
    assert [client.recv(1) for client in clients] == [b"", b"", b""]


def test_refused_peer_is_dropped_before_it_is_heard(t: Fixture, tmp_path: Path) -> None:
    """listen()'s admit() decides by the peer's address who is served."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    t.server.listen(listener, admit=lambda address: False)
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / "s"))
    t.loop.run_once(1)
    assert client.recv(1) == b""
    assert t.server.connections == 0


def test_executor_runs_handlers_in_threads_and_answers_on_the_loop() -> None:
    """With an executor a handler may block; another request overtakes it and all answers arrive."""
    loop = Loop()
    gate = threading.Event()
    threads: set[int] = set()

    def handler(request: Any, call: Call) -> Any:
        threads.add(threading.get_ident())
        if request.service == "block":
            gate.wait(5)
        return Reply(status=Reply.SERVING)

    server = Server(
        loop,
        {"t.T": {"M": (Check, handler)}},
        executor=lambda fn: threading.Thread(target=fn, daemon=True).start(),
    )
    peer = Peer(loop, server)
    peer.send(peer.request(1, "M", payload=Check(service="block").SerializeToString()) + peer.request(3, "M"))
    assert peer.answer()[0] == 3
    gate.set()
    assert peer.answer()[0] == 1
    assert threading.get_ident() not in threads
    server.close()
    loop.close()


def test_caller_gone_before_the_executor_returned_a_deferred() -> None:
    """A Deferred made after its caller went away is cancelled, not forgotten."""
    loop = Loop()
    gate = threading.Event()
    cancelled = threading.Event()

    def handler(request: Any, call: Call) -> Deferred:
        gate.wait(5)
        deferred = Deferred()
        deferred.on_cancel(cancelled.set)
        return deferred

    server = Server(
        loop,
        {"t.T": {"M": (Check, handler)}},
        executor=lambda fn: threading.Thread(target=fn, daemon=True).start(),
    )
    peer = Peer(loop, server)
    peer.send(peer.request(1, "M"))
    loop.run_once(1)
    peer.sock.close()
    while server.connections:
        loop.run_once(0.1)
    gate.set()
    for _ in range(100):
        loop.run_once(0.02)
        if cancelled.is_set():
            break
    assert cancelled.is_set()
    server.close()
    loop.close()


def test_inline_server_imports_neither_threading_nor_enum() -> None:
    """What the agent imports for ttrpc stays light."""
    code = """
import sys
sys.path[:0] = sys.argv[1:]
import agent.ttrpc.server
heavy = {"threading", "enum", "socket", "selectors", "typing", "re", "logging", "heapq"}
print(sorted(heavy & set(sys.modules)))
"""
    argv = ["/usr/bin/python3", "-IS", "-c", code, str(ROOT), sysconfig.get_path("platlib")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
