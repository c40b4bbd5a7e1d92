"""Accepts the raw stdio streams of the host, and keeps each until the request that names it claims it.

Owns accepted connections between accept and claim: bounded in number and in time. Knows nothing of processes.
A stream is known by the number in its first line, "PORT 7\\n", which the host also puts into CreateContainer
and ExecProcess. (The peer's vsock port is no use: through vhost-device-vsock the host never learns it.)
"""

from __future__ import annotations

import _socket
import select

from agent.errors import InvalidSpec
from agent.linux.loop import READABLE
from agent.linux.vsock import is_host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.linux.loop import Loop, Timer

MAX_UNCLAIMED = 512
UNCLAIMED_SECONDS = 10.0

_MAX_GREETING = len("PORT 4294967295\n")


class Streams:
    """The acceptor on one listening socket, which it owns."""

    def __init__(self, loop: Loop, listener: _socket.socket) -> None:
        listener.settimeout(0)
        self._loop = loop
        self._listener = listener
        self._poll = select.poll()
        self._poll.register(listener.fileno(), select.POLLIN)
        self._unclaimed: dict[int, _Stream] = {}
        self._greeting: set[_Stream] = set()
        loop.add(listener.fileno(), READABLE, lambda _events: self._accept_all())

    def claim(self, port: int, field: str) -> int:
        """The connected socket whose peer has that port, as a descriptor that is the caller's from now on.

        It must have connected already; `field` names the request's field in the InvalidSpec raised if it has
        not.
        """
        if port not in self._unclaimed:
            # The host connects and greets before it sends the request, but the request may be served first.
            self._accept_all()
            for stream in list(self._greeting):
                self._greet(stream)
        if port not in self._unclaimed:
            raise InvalidSpec(field, f"no stream has come as PORT {port}")
        stream = self._unclaimed.pop(port)
        stream.timer.cancel()
        return stream.sock.detach()

    def close(self) -> None:
        """Stop accepting, and drop what nobody claimed."""
        self._loop.remove(self._listener.fileno())
        self._listener.close()
        for stream in [*self._unclaimed.values(), *self._greeting]:
            self._drop(stream)

    def _accept_all(self) -> None:
        """Asked for first: accept(2) of vsock sleeps for a tick (10 ms) when nobody is there, non-blocking or not."""
        while self._poll.poll(0):
            try:
                fd, address = self._listener._accept()  # type: ignore[attr-defined]
            except OSError:
                return  # nobody is there any more, or no descriptor is free: the peer's request will say so
            self._accepted(_socket.socket(fileno=fd), address)

    def _accepted(self, sock: _socket.socket, address: object) -> None:
        if len(self._unclaimed) + len(self._greeting) >= MAX_UNCLAIMED or not is_host(sock.family, address):
            sock.close()
            return
        stream = _Stream(sock)
        stream.timer = self._loop.call_later(UNCLAIMED_SECONDS, lambda: self._drop(stream))
        sock.settimeout(0)
        self._greeting.add(stream)
        self._loop.add(sock.fileno(), READABLE, lambda _events: self._greet(stream))

    def _greet(self, stream: _Stream) -> None:
        """Take exactly the first line: what follows it is the stream's."""
        while not stream.greeting.endswith(b"\n"):
            try:
                there = stream.sock.recv(_MAX_GREETING, _socket.MSG_PEEK)
                stream.greeting += stream.sock.recv(there.find(b"\n") + 1 or len(there)) if there else b""
            except BlockingIOError:
                return
            except OSError:
                there = b""
            if not there or len(stream.greeting) > _MAX_GREETING:
                self._drop(stream)
                return
        self._greeted(stream)

    def _greeted(self, stream: _Stream) -> None:
        word, _space, number = stream.greeting.strip().partition(b" ")
        if word != b"PORT" or not number.isdigit():
            self._drop(stream)
            return
        self._loop.remove(stream.sock.fileno())
        self._greeting.discard(stream)
        self._keep(stream, int(number))

    def _keep(self, stream: _Stream, port: int) -> None:
        """A number that comes again is the newer stream's."""
        stream.port = port
        before = self._unclaimed.get(port)
        if before is not None:
            self._drop(before)
        self._unclaimed[port] = stream

    def _drop(self, stream: _Stream) -> None:
        stream.timer.cancel()
        if stream in self._greeting:
            self._loop.remove(stream.sock.fileno())
            self._greeting.discard(stream)
        if self._unclaimed.get(stream.port) is stream:
            del self._unclaimed[stream.port]
        stream.sock.close()


class _Stream:
    __slots__ = ("greeting", "port", "sock", "timer")

    timer: Timer

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.greeting = b""
        self.port = -1
