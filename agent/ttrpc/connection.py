"""One accepted ttrpc connection: non-blocking frames in and out, in bounded memory. No services here.

Used by server.py. A peer that does not read its answers is not listened to any more (above OUTPUT_HIGH), and
is dropped when late answers to its earlier requests take it over OUTPUT_MAX; other connections never notice.
"""

from __future__ import annotations

from agent.linux.loop import ERROR, HANGUP, READABLE, WRITABLE
from agent.linux.vsock import PACKET_MAX
from agent.ttrpc.frames import Decoder, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections import deque
    from collections.abc import Callable

    from agent.linux.loop import Loop
    from agent.ttrpc.frames import Frame
else:
    from _collections import deque

OUTPUT_HIGH = 1 << 20
OUTPUT_MAX = 32 << 20

_READ_SIZE = 256 << 10


class Connection:
    """`on_frame(frame)` for each frame, `on_closed()` once. Everything happens on the loop's thread."""

    def __init__(
        self, loop: Loop, sock: socket, on_frame: Callable[[Frame], None], on_closed: Callable[[], None]
    ) -> None:
        sock.settimeout(0)
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._decoder = Decoder()
        self._output = bytearray()
        self._backlog: deque[Frame] = deque()
        self._events = READABLE
        self.closed = False
        loop.add(self._fd, READABLE, self._ready)

    def send(self, stream_id: int, type: int, flags: int, payload: bytes) -> None:
        """Queue one frame, and write what the socket takes now."""
        if self.closed:
            return
        frame = encode(stream_id, type, flags, payload)
        if not self._output and len(frame) <= PACKET_MAX and self._sent_whole(frame):
            return
        self._output += frame
        self._flush()
        if len(self._output) > OUTPUT_MAX:
            self.close()

    def _sent_whole(self, frame: bytes) -> bool:
        """What most answers need; what the socket did not take of it is in the output. Errors are for _flush()."""
        try:
            sent = self._sock.send(frame)
        except OSError:
            return False
        if sent < len(frame):
            self._output += frame[sent:]
            self._watch()
        return True

    def close(self) -> None:
        """Close at once; frames not yet written are lost. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove(self._fd)
        self._sock.close()
        self._output.clear()
        self._backlog.clear()
        self._on_closed()

    @property
    def unsent(self) -> int:
        """Bytes that wait for the peer to read."""
        return len(self._output)

    def _ready(self, events: int) -> None:
        if events & WRITABLE:
            self._flush()
            self._deliver()
        if events & (READABLE | HANGUP | ERROR) and not self.closed:
            self._read()

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._backlog.extend(self._decoder.feed(data))
        self._deliver()

    def _deliver(self) -> None:
        """Frames to their consumer, until it has answered more than the peer reads."""
        while self._backlog and not self.closed and len(self._output) <= OUTPUT_HIGH:
            self._on_frame(self._backlog.popleft())

    def _flush(self) -> None:
        try:
            while self._output:
                del self._output[: self._sock.send(self._output[:PACKET_MAX])]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
            return
        self._watch()

    def _watch(self) -> None:
        """Write-readiness only while output waits; reading pauses while too much of it does."""
        events = WRITABLE if self._output else 0
        if len(self._output) <= OUTPUT_HIGH:
            events |= READABLE
        if events != self._events:
            self._events = events
            self._loop.modify(self._fd, events)
