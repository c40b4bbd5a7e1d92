"""A ttrpc server on a Loop: requests to handlers, answers to whoever asked, each request by itself.

Owns the rules of the protocol (README.md): stream ids, statuses, deadlines. Knows no service; they are handed
in. Called by the agent (inline: handlers run on the loop, so they must not block and return a Deferred where
they would) and by the host's pod process (an executor runs each handler in a thread).
"""

from __future__ import annotations

import errno
from _socket import socket

from google.protobuf.message import DecodeError

from agent.linux.loop import READABLE
from agent.ttrpc import frames, status
from agent.ttrpc.call import Call, Deferred
from agent.ttrpc.connection import Connection
from agent.ttrpc.ttrpc_pb2 import Request, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from agent.linux.loop import Loop, Timer
    from agent.ttrpc.frames import Frame

    Handler = Callable[[Any, Call], Any]
    Services = Mapping[str, Mapping[str, tuple[Any, Handler]]]
    """{"full.Service.Name": {"Method": (RequestClass, handler)}}; it returns a message or a Deferred."""

__all__ = ["Call", "Deferred", "Server"]

MAX_PENDING = 4096
"""Requests of one connection that wait for an answer; the next is refused with RESOURCE_EXHAUSTED."""

_ACCEPT_PAUSE = 0.5


class Server:
    """`on_error(exception, "Service/Method")` sees every handler failure that carries no status of its own.

    `executor(fn)` runs fn elsewhere and returns at once; None runs handlers inline.
    """

    def __init__(
        self,
        loop: Loop,
        services: Services,
        on_error: Callable[[Exception, str], None] | None = None,
        executor: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self._loop = loop
        self._services = services
        self._on_error = on_error
        self._executor = executor
        self._listeners: list[socket] = []
        self._peers: set[_Peer] = set()

    def listen(self, sock: socket, admit: Callable[[object], bool] | None = None) -> None:
        """Accept connections from a listening socket, which the server owns from now on.

        `admit(address)` says who may: a peer that it refuses is dropped before it can say a word.
        """
        sock.settimeout(0)
        self._listeners.append(sock)
        self._loop.add(sock.fileno(), READABLE, lambda _events: self._accept(sock, admit))

    def attach(self, sock: socket) -> None:
        """Serve one connected socket, which the server owns from now on."""
        self._peers.add(_Peer(self, sock))

    def close(self) -> None:
        """Stop listening and drop every connection; their pending requests are cancelled."""
        for sock in self._listeners:
            self._loop.remove(sock.fileno())
            sock.close()
        self._listeners.clear()
        for peer in list(self._peers):
            peer.connection.close()

    @property
    def connections(self) -> int:
        """How many peers are connected."""
        return len(self._peers)

    @property
    def unsent(self) -> int:
        """Bytes of answers that wait for their peers to read."""
        return sum(peer.connection.unsent for peer in self._peers)

    def _accept(self, listener: socket, admit: Callable[[object], bool] | None) -> None:
        try:
            fd, address = listener._accept()  # type: ignore[attr-defined]
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                self._pause(listener)
            return
        # Said, so that the kernel need not be asked three times.
        sock = socket(listener.family, listener.type, listener.proto, fd)
        if admit is None or admit(address):
            self.attach(sock)
        else:
            sock.close()

    def _pause(self, listener: socket) -> None:
        """No descriptor is free for a new peer: it waits in the backlog, and epoll shall not spin on it."""
        self._loop.modify(listener.fileno(), 0)
        self._loop.call_later(_ACCEPT_PAUSE, lambda: self._resume(listener))

    def _resume(self, listener: socket) -> None:
        if listener in self._listeners:
            self._loop.modify(listener.fileno(), READABLE)

    def _find(self, request: Request) -> tuple[Any, Handler]:
        service = self._services.get(request.service)
        if service is None:
            raise status.RpcError(status.UNIMPLEMENTED, f"service {request.service}")
        method = service.get(request.method)
        if method is None:
            raise status.RpcError(status.UNIMPLEMENTED, f"method {request.method} of {request.service}")
        return method

    def _failed(self, exc: Exception, call: Call) -> None:
        if self._on_error is not None and not isinstance(getattr(exc, "code", None), int):
            self._on_error(exc, f"{call.service}/{call.method}")


class _Peer:
    """The server's side of one connection: its stream ids and its pending requests."""

    def __init__(self, server: Server, sock: socket) -> None:
        self._server = server
        self._last_id = 0
        self._pending: dict[int, _Pending] = {}
        self.connection = Connection(server._loop, sock, self._frame, self._closed)

    def _frame(self, frame: Frame) -> None:
        try:
            if frame.type == frames.REQUEST:
                self._request(frame)
            elif frame.type == frames.DATA:
                self._data(frame)
        except status.RpcError as exc:
            self._send_status(frame.stream_id, exc.code, exc.message)

    def _request(self, frame: Frame) -> None:
        self._check_id(frame.stream_id)
        if frame.oversize:
            raise status.RpcError(status.RESOURCE_EXHAUSTED, f"message over {frames.MAX_PAYLOAD} bytes")
        if frame.flags & frames.REMOTE_OPEN:
            raise status.RpcError(status.UNIMPLEMENTED, "client streaming is not supported")
        if len(self._pending) >= MAX_PENDING:
            raise status.RpcError(status.RESOURCE_EXHAUSTED, f"{MAX_PENDING} requests are pending")
        request = _decode(Request, frame.payload, "request")
        request_class, handler = self._server._find(request)
        message = _decode(request_class, request.payload, f"{request.service}/{request.method}")
        pending = _Pending(self, frame.stream_id, _call_of(request))
        self._pending[frame.stream_id] = pending
        pending.start(handler, message)

    def _check_id(self, stream_id: int) -> None:
        if stream_id % 2 == 0:
            raise status.RpcError(status.INVALID_ARGUMENT, f"stream id {stream_id} is not odd")
        if stream_id <= self._last_id:
            raise status.RpcError(
                status.INVALID_ARGUMENT, f"stream id {stream_id} is not above {self._last_id}"
            )
        self._last_id = stream_id

    def _data(self, frame: Frame) -> None:
        """Nobody streams here: data belongs to no stream, or to a client that ends its sending."""
        if frame.stream_id not in self._pending and not frame.flags & frames.NO_DATA:
            raise status.RpcError(status.INVALID_ARGUMENT, f"stream {frame.stream_id} is not open")

    def _closed(self) -> None:
        self._server._peers.discard(self)
        pending, self._pending = self._pending, {}
        for entry in pending.values():
            entry.cancel()

    def answer(self, pending: _Pending, response: Response) -> None:
        """Send the answer of a pending request, once."""
        if self._pending.pop(pending.stream_id, None) is pending:
            self._send(pending.stream_id, response)

    def _send_status(self, stream_id: int, code: int, message: str) -> None:
        self._send(stream_id, _status_response(code, message))

    def _send(self, stream_id: int, response: Response) -> None:
        payload = response.SerializeToString()
        if len(payload) > frames.MAX_PAYLOAD:
            text = f"answer of {len(payload)} bytes is over {frames.MAX_PAYLOAD}"
            payload = _status_response(status.RESOURCE_EXHAUSTED, text).SerializeToString()
        self.connection.send(stream_id, frames.RESPONSE, 0, payload)


class _Pending:
    """A request until its answer: runs the handler, here or in the executor; the outcome is the loop's."""

    __slots__ = ("_call", "_cancelled", "_deferred", "_peer", "_timer", "stream_id")

    def __init__(self, peer: _Peer, stream_id: int, call: Call) -> None:
        self._peer = peer
        self._call = call
        self._cancelled = False
        self._deferred: Deferred | None = None
        self._timer: Timer | None = None
        self.stream_id = stream_id

    def start(self, handler: Handler, message: Any) -> None:
        server = self._peer._server
        if server._executor is None:
            self._run(handler, message)
        else:
            server._executor(lambda: self._run(handler, message))
        if self._call.timeout_nano > 0 and self.stream_id in self._peer._pending:
            self._timer = server._loop.call_later(self._call.timeout_nano / 1e9, self._timed_out)

    def _run(self, handler: Handler, message: Any) -> None:
        try:
            result = handler(message, self._call)
        except Exception as exc:  # noqa: BLE001 - the service boundary: every failure becomes a status
            self._outcome(None, exc)
            return
        if isinstance(result, Deferred):
            self._deferred = result
            if self._cancelled:
                self._cancel_deferred(result)
            result.bind(self._outcome)
        else:
            self._outcome(result, None)

    def _outcome(self, message: Any, exc: Exception | None) -> None:
        server = self._peer._server
        if server._executor is None:
            self._settle(message, exc)
        else:
            server._loop.call_threadsafe(lambda: self._settle(message, exc))

    def _settle(self, message: Any, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if exc is None and message is None:
            exc = TypeError("the handler returned no message")
        if exc is not None:
            self._peer._server._failed(exc, self._call)
            response = _status_response(*status.status_of(exc))
        else:
            response = Response(payload=message.SerializeToString())
        self._peer.answer(self, response)

    def _timed_out(self) -> None:
        text = f"{self._call.method} took longer than {self._call.timeout} s"
        self._peer.answer(self, _status_response(status.DEADLINE_EXCEEDED, text))
        self.cancel()

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self._cancelled = True
        if self._timer is not None:
            self._timer.cancel()
        if self._deferred is not None:
            self._deferred.cancel()

    def _cancel_deferred(self, deferred: Deferred) -> None:
        """The caller went while the handler still ran in the executor."""
        self._peer._server._loop.call_threadsafe(deferred.cancel)


def _call_of(request: Request) -> Call:
    metadata: dict[str, list[str]] = {}
    if request.metadata:
        for pair in request.metadata:
            metadata.setdefault(pair.key, []).append(pair.value)
    return Call(request.service, request.method, metadata, request.timeout_nano)


def _decode(message_class: Any, data: bytes, what: str) -> Any:
    try:
        return message_class.FromString(data)
    except DecodeError as exc:
        raise status.RpcError(status.INVALID_ARGUMENT, f"{what}: {exc}") from exc


def _status_response(code: int, message: str) -> Response:
    response = Response()
    response.status.code = code
    response.status.message = message
    return response
