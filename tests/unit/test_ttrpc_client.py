"""The ttrpc client against our server and against peers that misbehave."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.api import health_pb2
from agent.linux.loop import Loop
from agent.ttrpc import client as client_module
from agent.ttrpc import frames, status
from agent.ttrpc.client import Client, ConnectionClosed
from agent.ttrpc.frames import encode
from agent.ttrpc.server import Call, Deferred, Server
from agent.ttrpc.ttrpc_pb2 import Request, Response

Check = health_pb2.CheckRequest
Reply = health_pb2.HealthCheckResponse


class Served:
    """A real server on its own thread, and a client connected to it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.deferred: list[Deferred] = []
        self.calls: list[Call] = []
        services = {"t.T": {"Echo": (Check, self.echo), "Later": (Check, self.later)}}
        self.server = Server(self.loop, services)
        theirs, ours = socket.socketpair()
        self.server.attach(theirs)
        self.client = Client(ours)
        self.thread = threading.Thread(target=self.loop.run, daemon=True)
        self.thread.start()

    def echo(self, request: Any, call: Call) -> Any:
        self.calls.append(call)
        if request.service == "fail":
            raise status.RpcError(status.FAILED_PRECONDITION, "no")
        return Check(service=request.service)

    def later(self, request: Any, call: Call) -> Deferred:
        self.deferred.append(Deferred())
        return self.deferred[-1]

    def call(self, text: str, method: str = "Echo", timeout: float | None = 5) -> str:
        answer = self.client.call("t.T", method, Check(service=text), Check, timeout)
        return answer.service

    def close(self) -> None:
        self.client.close()
        self.loop.stop()
        self.thread.join(5)
        self.server.close()
        self.loop.close()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.close()


def test_call_gives_the_answer(served: Served) -> None:
    """call() returns the response message, and the server sees time-out and metadata."""
    answer = served.client.call("t.T", "Echo", Check(service="hi"), Check, 7, {"k": "v"})
    assert answer.service == "hi"
    assert (served.calls[0].timeout, served.calls[0].metadata) == (7.0, {"k": ["v"]})


def test_status_is_raised(served: Served) -> None:
    """A peer's status becomes RpcError with its code and text."""
    with pytest.raises(status.RpcError) as caught:
        served.call("fail")
    assert (caught.value.code, caught.value.message) == (status.FAILED_PRECONDITION, "no")


def test_time_out_is_raised_and_the_connection_goes_on(served: Served) -> None:
    """No answer in time is DEADLINE_EXCEEDED; the next call works."""
    started = time.monotonic()
    with pytest.raises(status.RpcError) as caught:
        served.call("x", "Later", timeout=0.05)
    assert caught.value.code == status.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 2
    assert served.call("still here") == "still here"


def test_many_threads_share_one_client(served: Served) -> None:
    """Concurrent calls get their own answers."""
    wrong: list[str] = []

    def work(n: int) -> None:
        for i in range(50):
            text = f"{n}.{i}" + "x" * (n * 5000)
            if served.call(text) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert wrong == []


def test_long_polls_need_no_thread_each(served: Served) -> None:
    """call_async() hands its answer to `done` when it comes, while other calls go on."""
    answers: list[Any] = []
    arrived = threading.Event()

    def done(message: Any, exc: Exception | None) -> None:
        answers.append((message and message.service, exc))
        arrived.set()

    before = threading.active_count()
    for _ in range(20):
        served.client.call_async("t.T", "Later", Check(), Check, done)
    assert served.call("meanwhile") == "meanwhile"
    assert threading.active_count() - before <= 1
    served.loop.call_threadsafe(lambda: served.deferred[7].resolve(Check(service="seven")))
    assert arrived.wait(5)
    assert answers == [("seven", None)]


def test_close_fails_what_is_pending(served: Served) -> None:
    """close() ends every pending call with ConnectionClosed, and later ones too; it is idempotent."""
    failed: list[Exception | None] = []
    arrived = threading.Event()

    def done(_message: Any, exc: Exception | None) -> None:
        failed.append(exc)
        arrived.set()

    served.client.call_async("t.T", "Later", Check(), Check, done)
    served.client.close()
    served.client.close()
    assert arrived.wait(5)
    assert isinstance(failed[0], ConnectionClosed)
    assert served.client.closed
    with pytest.raises(ConnectionClosed):
        served.call("x")


def test_request_over_the_limit_is_not_sent(served: Served) -> None:
    """A request that the peer would refuse fails here, alone."""
    with pytest.raises(status.RpcError) as caught:
        served.call("x" * (5 << 20))
    assert caught.value.code == status.RESOURCE_EXHAUSTED
    assert served.call("next") == "next"


class Liar:
    """A peer that answers the first request frame with given bytes, and then may hang up."""

    def __init__(
        self,
        answer: Callable[[int], bytes],
        *,
        hang_up: bool = False,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        self.sock, ours = socket.socketpair()
        self.client = Client(ours, on_error=on_error)
        self.requests: list[Request] = []
        self._answer = answer
        self._hang_up = hang_up
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        decoder = frames.Decoder()
        while data := self.sock.recv(65536):
            for frame in decoder.feed(data):
                self.requests.append(Request.FromString(frame.payload))
                self.sock.sendall(self._answer(frame.stream_id))
                if self._hang_up:
                    self.sock.close()
                    return

    def call(self) -> Any:
        return self.client.call("s", "M", Check(), Check, 5)


GOOD = Response(payload=Check(service="good").SerializeToString()).SerializeToString()


def test_answers_to_unknown_streams_and_odd_frames_are_ignored() -> None:
    """Frames that nobody asked for do not disturb the call that is pending."""
    liar = Liar(
        lambda sid: (
            encode(sid + 2, frames.RESPONSE, 0, GOOD)
            + encode(sid, frames.DATA, 0, b"x")
            + encode(sid, 99, 0, b"")
            + encode(sid, frames.RESPONSE, 0, GOOD)
        )
    )
    assert liar.call().service == "good"
    liar.client.close()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda sid: encode(sid, frames.RESPONSE, 0, b"\xff"), status.INTERNAL),
        (
            lambda sid: encode(sid, frames.RESPONSE, 0, Response(payload=b"\xff").SerializeToString()),
            status.INTERNAL,
        ),
        (
            lambda sid: b"\xff\0\0\0" + sid.to_bytes(4, "big") + bytes((frames.RESPONSE, 0)),
            status.RESOURCE_EXHAUSTED,
        ),
    ],
)
def test_bad_answer_fails_its_call(answer: Callable[[int], bytes], code: int) -> None:
    """An undecodable or oversize answer is an error of that call."""
    liar = Liar(answer)
    with pytest.raises(status.RpcError) as caught:
        liar.call()
    assert caught.value.code == code
    liar.client.close()


@pytest.mark.parametrize(
    ("answer", "text"),
    [(lambda sid: b"", "closed by the peer"), (lambda sid: b"\0\0\0", "cut off")],
)
def test_peer_that_hangs_up_is_a_closed_connection(answer: Callable[[int], bytes], text: str) -> None:
    """EOF instead of an answer is ConnectionClosed, with what is known about it."""
    liar = Liar(answer, hang_up=True)
    with pytest.raises(ConnectionClosed, match=text):
        liar.call()
    with pytest.raises(ConnectionClosed):
        liar.call()


def test_peer_that_does_not_read_cannot_hang_a_call() -> None:
    """A call to a peer that never reads ends at its time-out, and the connection is given up."""
    _theirs, ours = socket.socketpair()
    client = Client(ours)
    big = Check(service="x" * (3 << 20))
    started = time.monotonic()
    with pytest.raises(ConnectionClosed, match="does not read"):
        client.call("s", "M", big, Check, 0.2)
    assert time.monotonic() - started < 3
    with pytest.raises(ConnectionClosed):
        client.call("s", "M", Check(), Check, 0.2)


def test_failing_done_callback_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a `done` callback raises goes to on_error, and the reader goes on."""
    errors: list[Exception] = []
    seen = threading.Event()

    def on_error(exc: Exception) -> None:
        errors.append(exc)
        seen.set()

    peer = Liar(lambda sid: encode(sid, frames.RESPONSE, 0, GOOD), on_error=on_error)
    peer.client.call_async("s", "M", Check(), Check, lambda message, exc: [][0])
    assert seen.wait(5)
    assert isinstance(errors[0], IndexError)
    assert peer.call().service == "good"
    peer.client.close()
    assert client_module.ConnectionClosed is ConnectionClosed
