"""Moves a stream's bytes from one descriptor to another inside the loop, as fast as the slower end takes
them.

Owns: splice(2) where one end is a pipe, the frames of output, the size of an output's pipe, and waiting on
exactly the end that holds the stream up, so that a slow reader stops the writer and at most one frame is kept
in memory. Knows nothing of processes. Called by agent.process.stdio. Both descriptors are made non-blocking; a
flow does not close them.

Input comes as it is. Output goes in chunks with their length in front, length 0 being the end, because the
vsock device can lose the tail of what a guest sends right before it closes: see agent/api/README.md.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct

from agent.linux.loop import READABLE, WRITABLE
from agent.linux.vsock import PACKET_MAX, SEND_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.linux.loop import Loop

CHUNK = 1 << 16
"""What a pipe holds that nobody has made larger."""
WIDE = 1 << 20
"""What the pipe of an output holds that was once full: as much as an unprivileged pipe may (fs.pipe-max-size). Writer and
flow take turns sixteen times less often, which is half of the time where both share a CPU. Also its frame with the header."""
HEADER = 4
BURST = 16
BURST_BYTES = 1 << 20
"""Chunks, and bytes, moved before the loop serves others."""
_SPLICE_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
_SOURCE_EMPTY, _SINK_FULL, _MOVED, _ENDED = range(4)

# One thread, and nothing stays in it between two calls. What fits into a pipe is one frame: the host has one header and
# one chunk to look at. A flow that fills its pipe gets a frame of its own.
_shared = memoryview(bytearray(HEADER + CHUNK))


class Flow:
    """One direction of one stream. `on_end` is called once: end of the source, or an end is broken."""

    __slots__ = ("_loop", "_on_end", "_sink", "_source", "_waiting_for", "ended", "moved")

    def __init__(self, loop: Loop, source: int, sink: int, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._on_end = on_end
        self._waiting_for = -1
        self.ended = False
        self.moved = 0
        """bytes taken from the source so far"""
        os.set_blocking(source, False)
        os.set_blocking(sink, False)

    def begin(self) -> None:
        """Start waiting for the source."""
        self._wait(self._source, READABLE)

    def stop(self) -> None:
        """End now, without `on_end`."""
        self._unwait()
        self.ended = True

    def end_when_quiet(self, seconds: float) -> None:
        """End once the source has given nothing for `seconds` and all it gave is delivered."""
        before = self.moved

        def check() -> None:
            if self.ended:
                return
            if self.moved == before and self._waiting_for == self._source:
                self.finish()
            else:
                self.end_when_quiet(seconds)

        self._loop.call_later(seconds, check)

    def finish(self) -> None:
        """The source counts as ended."""
        self.stop()
        self._on_end()

    def run(self, _events: int = 0) -> None:
        """Move what can be moved now; then wait for the end that is in the way."""
        if self.ended:
            return
        enough = self.moved + BURST_BYTES
        for _ in range(BURST):
            outcome = self._move()
            if outcome == _MOVED:
                if self.moved < enough:
                    continue
                return
            if outcome == _ENDED:
                self.stop()
                self._on_end()
            elif outcome == _SINK_FULL:
                self._wait(self._sink, WRITABLE)
            else:
                self._wait(self._source, READABLE)
            return

    def _move(self) -> int:
        raise NotImplementedError

    def _wait(self, fd: int, events: int) -> None:
        """Wait for one end only: epoll reports a hang-up of the other one again and again."""
        if self._waiting_for != fd:
            self._unwait()
            self._loop.add(fd, events, self.run)
            self._waiting_for = fd

    def _unwait(self) -> None:
        if self._waiting_for >= 0:
            self._loop.remove(self._waiting_for)
            self._waiting_for = -1


class Input(Flow):
    """Raw bytes into a pipe or terminal."""

    __slots__ = ("_pending", "_splice")

    def __init__(self, loop: Loop, source: int, sink: int, on_end: Callable[[], None]) -> None:
        super().__init__(loop, source, sink, on_end)
        self._splice = True
        self._pending = b""

    def _move(self) -> int:
        if not self._splice:
            return self._copy()
        try:
            count = os.splice(self._source, self._sink, CHUNK, flags=_SPLICE_FLAGS)
        except BlockingIOError:
            return _SINK_FULL if _has_data(self._source) else _SOURCE_EMPTY
        except OSError as error:
            if error.errno == errno.EINVAL:  # neither end is a pipe, or this kind of socket cannot
                self._splice = False
                return self._copy()
            return _ENDED  # EPIPE, ECONNRESET
        self.moved += count
        return _MOVED if count else _ENDED

    def _copy(self) -> int:
        if not self._pending:
            try:
                self._pending = os.read(self._source, CHUNK)
            except BlockingIOError:
                return _SOURCE_EMPTY
            except OSError:
                return _ENDED
            if not self._pending:
                return _ENDED
            self.moved += len(self._pending)
        try:
            self._pending = self._pending[os.write(self._sink, self._pending) :]
        except BlockingIOError:
            return _SINK_FULL
        except OSError:
            return _ENDED
        return _MOVED


class Output(Flow):
    """Frames out of a pipe or terminal, the last one empty. A frame is never split by waiting for more data.

    Copied and not spliced: what splice would save is lost to a system call and a vsock packet of its own
    for each header (and for each page: vsock has no sendpage).
    """

    __slots__ = ("_filled", "_finishing", "_frame", "_pending", "_send_max", "_told")

    def __init__(self, loop: Loop, source: int, sink: int, on_end: Callable[[], None]) -> None:
        super().__init__(loop, source, sink, on_end)
        self._finishing = False
        self._told = False
        self._filled = False
        self._frame = _shared
        self._send_max = SEND_MAX
        self._pending: bytes | memoryview = b""

    def finish(self) -> None:
        """Send the end, after the frame that is on its way."""
        self._finishing = True
        self.run()

    def _move(self) -> int:
        if not self._pending and self._finishing:
            if self._told:
                return _ENDED
            self._told = True
            self._pending = bytes(HEADER)
        if not self._pending:
            try:
                count = self._read()
            except BlockingIOError:
                return _SOURCE_EMPTY
            except OSError:  # EIO: a terminal that nobody has open
                count = 0
            struct.pack_into(">I", self._frame, 0, count)
            self._pending = self._frame[: HEADER + count]
            self._told = self._finishing = not count
            self.moved += count
        return self._send()

    def _read(self) -> int:
        if self._filled:
            self._widen()
        count = os.readv(self._source, [self._frame[HEADER:]])
        self._filled = count == CHUNK and self._frame is _shared
        return count

    def _widen(self) -> None:
        """The pipe was full. A frame of its own takes memory page by page, as far as it is used."""
        self._frame = memoryview(bytearray(WIDE))
        try:
            fcntl.fcntl(self._source, fcntl.F_SETPIPE_SZ, WIDE)
        except OSError:  # a terminal
            pass

    def _send(self) -> int:
        while self._pending:
            piece = self._pending[: self._send_max]
            try:
                count = os.write(self._sink, piece)
            except BlockingIOError:
                count = 0
            except OSError as error:
                if error.errno != errno.ENOMEM or self._send_max <= PACKET_MAX:
                    return _ENDED
                self._send_max = PACKET_MAX  # a packet of 64 KiB is 32 pages in a row, which memory in pieces does not have
                continue
            self._pending = self._pending[count:]
            if count < len(piece):
                if self._frame is _shared:  # with the other flows
                    self._pending = bytes(self._pending)
                return _SINK_FULL
        return _MOVED


def close_after_peer(loop: Loop, sock: int, seconds: float) -> None:
    """Close `sock` once its peer has, or after `seconds`."""
    open_fds = [sock]

    def close() -> None:
        if open_fds:
            loop.remove(sock)
            os.close(open_fds.pop())

    def ready(_events: int) -> None:
        try:
            if os.read(sock, HEADER):
                return  # nothing is expected from there
        except BlockingIOError:
            return
        except OSError:
            pass
        close()

    try:
        loop.add(sock, READABLE, ready)
    except PermissionError:  # /dev/null
        os.close(open_fds.pop())
    else:
        loop.call_later(seconds, close)


def _has_data(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
