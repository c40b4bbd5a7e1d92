"""A ttrpc client over one connected socket: blocking calls from any thread, and calls that call back.

Owns the stream ids and one reader thread, which starts with the first call. Used by the host (dialling is its
matter) and by tests; never by the agent, hence `threading` is imported late.
"""

from __future__ import annotations

import select
import sys
import time
from _thread import allocate_lock

from google.protobuf.message import DecodeError

from agent.ttrpc import frames, status
from agent.ttrpc.ttrpc_pb2 import KeyValue, Request, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Mapping
    from typing import Any, TypeVar

    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)
    Done = Callable[[Any, Exception | None], None]

_READ_SIZE = 256 << 10
_SEND_WITHOUT_DEADLINE = 60.0
"""Seconds that a peer may take to read one request of a call that itself has no time-out."""


class ConnectionClosed(OSError):
    """The connection ended, here or there: it is not known whether the peer carried out what was pending."""


class Client:
    """See the module. `on_error` gets what a `done` callback raises (else sys.excepthook)."""

    def __init__(self, sock: socket, on_error: Callable[[Exception], None] | None = None) -> None:
        sock.settimeout(None)
        self._sock = sock
        self._on_error = on_error
        self._lock = allocate_lock()
        self._send_lock = allocate_lock()
        self._next_id = 1
        self._pending: dict[int, _Waiting] = {}
        self._reading = False
        self._broken: ConnectionClosed | None = None

    def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_class: type[M],
        timeout: float | None,
        metadata: Mapping[str, str] | None = None,
    ) -> M:
        """The peer's answer. `timeout`: seconds, None for ever; the peer is told it too.

        Raises RpcError with the peer's status, or DEADLINE_EXCEEDED when no answer came in time;
        ConnectionClosed when the connection ended before the answer.
        """
        answered = allocate_lock()
        answered.acquire()
        outcome: list[Any] = []

        def done(message: Any, exc: Exception | None) -> None:
            outcome[:] = [message, exc]
            answered.release()

        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = _Waiting(response_class, done)
        stream_id = self._start(service, method, request, waiting, timeout, metadata)
        if not answered.acquire(timeout=_left(deadline)) and self._forget(stream_id):
            raise status.RpcError(status.DEADLINE_EXCEEDED, f"{method}: no answer within {timeout} s")
        if not outcome:
            # The answer came between the time-out and _forget: the reader thread is about to hand it over.
            answered.acquire()
        message, exc = outcome
        if exc is not None:
            raise exc
        result: M = message
        return result

    def call_async(
        self,
        service: str,
        method: str,
        request: Message,
        response_class: type[M],
        done: Callable[[M | None, Exception | None], None],
    ) -> None:
        """Call without a time-out; the reader thread calls `done(message, None)` or `done(None, exception)`.

        `done` must not block and must not `call()` on this client. Raises ConnectionClosed if it is closed
        already.
        """
        self._start(service, method, request, _Waiting(response_class, done), None, None)

    def close(self) -> None:
        """End the connection; everything pending fails with ConnectionClosed. Idempotent, from any thread."""
        self._break(ConnectionClosed("closed by this side"))

    @property
    def closed(self) -> bool:
        """True once the connection has ended."""
        return self._broken is not None

    def _start(
        self,
        service: str,
        method: str,
        request: Message,
        waiting: _Waiting,
        timeout: float | None,
        metadata: Mapping[str, str] | None,
    ) -> int:
        envelope = Request(service=service, method=method, payload=request.SerializeToString())
        envelope.timeout_nano = 0 if timeout is None else max(1, int(timeout * 1e9))
        envelope.metadata.extend(KeyValue(key=key, value=value) for key, value in (metadata or {}).items())
        payload = envelope.SerializeToString()
        if len(payload) > frames.MAX_PAYLOAD:
            raise status.RpcError(status.RESOURCE_EXHAUSTED, f"{method}: request of {len(payload)} bytes")
        deadline = time.monotonic() + (_SEND_WITHOUT_DEADLINE if timeout is None else timeout)
        return self._send(payload, waiting, deadline, method)

    def _send(self, payload: bytes, waiting: _Waiting, deadline: float, method: str) -> int:
        """Ids must reach the peer in rising order: the lock that orders the writes gives them out."""
        if not self._send_lock.acquire(timeout=_left(deadline)):
            raise status.RpcError(status.DEADLINE_EXCEEDED, f"{method}: the peer does not read")
        try:
            stream_id = self._register(waiting)
            self._write(frames.encode(stream_id, frames.REQUEST, 0, payload), deadline, method)
        finally:
            self._send_lock.release()
        return stream_id

    def _register(self, waiting: _Waiting) -> int:
        with self._lock:
            if self._broken is not None:
                raise ConnectionClosed(*self._broken.args)
            stream_id, self._next_id = self._next_id, self._next_id + 2
            self._pending[stream_id] = waiting
            start_reader, self._reading = not self._reading, True
        if start_reader:
            import threading

            threading.Thread(target=self._read_all, name="ttrpc-client", daemon=True).start()
        return stream_id

    def _write(self, data: bytes, deadline: float, method: str) -> None:
        """Write all of it. A request that is cut off makes the connection unusable, so it is closed then."""
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[self._sock.send(view, _DONT_WAIT) :]
                except BlockingIOError:
                    self._wait_writable(deadline)
        except OSError as exc:
            self._break(ConnectionClosed(f"{method}: {exc.strerror or exc}"))

    def _wait_writable(self, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLOUT)
        if not poll.poll(max(0, _left(deadline)) * 1000):
            raise TimeoutError("the peer does not read")

    def _read_all(self) -> None:
        decoder = frames.Decoder()
        reason = "closed by the peer"
        try:
            while data := self._sock.recv(_READ_SIZE):
                for frame in decoder.feed(data):
                    self._frame(frame)
            if decoder.incomplete:
                reason = "cut off by the peer within a frame"
        except OSError as exc:
            reason = exc.strerror or str(exc)
        self._break(ConnectionClosed(reason))
        self._sock.close()

    def _frame(self, frame: frames.Frame) -> None:
        """Answers to streams that nobody waits for any more are dropped."""
        if frame.type != frames.RESPONSE:
            return
        with self._lock:
            waiting = self._pending.pop(frame.stream_id, None)
        if waiting is not None:
            self._finish(waiting, *_outcome(frame, waiting.response_class))

    def _forget(self, stream_id: int) -> bool:
        with self._lock:
            return self._pending.pop(stream_id, None) is not None

    def _break(self, exc: ConnectionClosed) -> None:
        with self._lock:
            if self._broken is not None:
                return
            self._broken = exc
            pending, self._pending = self._pending, {}
            reading = self._reading
        _shut_down(self._sock)
        if not reading:
            self._sock.close()
        for waiting in pending.values():
            self._finish(waiting, None, ConnectionClosed(*exc.args))

    def _finish(self, waiting: _Waiting, message: Any, exc: Exception | None) -> None:
        try:
            waiting.done(message, exc)
        except Exception as failure:  # noqa: BLE001 - one broken callback must not cost the others their answers
            if self._on_error is None:
                sys.excepthook(type(failure), failure, failure.__traceback__)
            else:
                self._on_error(failure)


class _Waiting:
    """What a stream's answer is to become, and who gets it."""

    __slots__ = ("done", "response_class")

    def __init__(self, response_class: Any, done: Done) -> None:
        self.response_class = response_class
        self.done = done


# MSG_DONTWAIT of <bits/socket.h>; SHUT_RDWR of <sys/socket.h>. (The socket module would bring in enum and
# selectors.)
_DONT_WAIT = 0x40
_SHUT_RDWR = 2


def _shut_down(sock: socket) -> None:
    """Wakes the reader thread, which then closes the descriptor (closed here, its number could be reused)."""
    try:
        sock.shutdown(_SHUT_RDWR)
    except OSError:
        pass


def _left(deadline: float | None) -> float:
    """Seconds until the deadline, as lock.acquire() takes them: -1 waits for ever."""
    return -1 if deadline is None else max(0.0, deadline - time.monotonic())


def _outcome(frame: frames.Frame, response_class: Any) -> tuple[Any, Exception | None]:
    if frame.oversize:
        return None, status.RpcError(status.RESOURCE_EXHAUSTED, f"answer over {frames.MAX_PAYLOAD} bytes")
    try:
        response = Response.FromString(frame.payload)
        if response.status.code != status.OK:
            return None, status.RpcError(response.status.code, response.status.message)
        return response_class.FromString(response.payload), None
    except DecodeError as exc:
        return None, status.RpcError(status.INTERNAL, f"undecodable answer: {exc}")
