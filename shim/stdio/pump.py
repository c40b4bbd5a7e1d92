"""One direction of one stream: bytes from a descriptor to a descriptor, as fast as the slower end takes them.

Owns: the state of that direction (waiting to read, waiting to write, ended), zero-copy by splice(2),
back-pressure. Must not know: which stream it is, or who is at either end. Called by relay.py, in the loop's
thread only.

`framed`: the source is a stream from the guest, in which each piece has its length in front and length 0 is
the end. The vsock device loses the tail of what a guest writes right before it closes, so its close cannot
be the end.

A side that is waited for is in the loop, the other one is not: epoll reports a hang-up of every registered
descriptor for ever, whether it is asked for or not, and a stalled stream would spin.
"""

from __future__ import annotations

import errno
import fcntl
import os
import termios
import time
from collections.abc import Callable
from typing import Protocol

from agent.linux.loop import READABLE, WRITABLE, Loop

CHUNK = 1 << 20  # what one splice may move: as much as the largest unprivileged pipe (fs.pipe-max-size) holds
COPY_CHUNK = 1 << 16
LINGER = 0.5  # seconds that a reader has for what is in its fifo at the end
LINGER_STEP = 0.002
HEADER = 4  # bytes of a frame's length, big-endian
TURNS = 8  # chunks per wake-up, so that one busy stream does not starve the others
# The other side is gone: its reader closed a pipe, its machine died. For the stream this is simply the end.
GONE = {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EIO, errno.ESHUTDOWN}


class Sink(Protocol):
    """Something that takes bytes at once, without a descriptor to wait for (a log file, nothing)."""

    def write(self, data: bytes) -> None:
        """Take all of `data`."""

    def close(self) -> None:
        """No more will come."""


class Tee:
    """A sink that keeps everything in `kept` and passes it to the descriptor `fd` as long as that is read."""

    def __init__(self, fd: int, kept: Sink) -> None:
        self.fd = fd
        self.kept = kept

    def close(self) -> None:
        """Close both; only for a tee that no pump has taken over."""
        os.close(self.fd)
        self.kept.close()


class Pump:
    """Moves bytes from `source` to `sink` until `source` ends or `sink` is gone. Owns both and closes both
    at the end.

    `ended(pump)` is called once, in the loop, after the descriptors are closed. Either end may be -1 after
    that.
    """

    def __init__(
        self,
        loop: Loop,
        source: int,
        sink: int | Sink | Tee,
        ended: Callable[[Pump], None],
        *,
        framed: bool = False,
    ) -> None:
        self._kept: Sink | None = None
        self._splice = isinstance(sink, int)
        if isinstance(sink, Tee):
            self._kept = sink.kept
            sink = sink.fd
        os.set_blocking(source, False)
        if isinstance(sink, int):
            os.set_blocking(sink, False)
        self._loop = loop
        self._source = source
        self._sink = sink
        self._ended = ended
        self._pending = b""  # copied but not yet written; only where splice is impossible
        self._framed = framed
        self._header = b""
        self._left = 0 if framed else CHUNK  # of the frame
        self._waiting = -1
        self.done = False

    def start(self) -> None:
        """Begin moving; in the loop's thread."""
        if not self.done:
            self._wait_for_source()

    def close(self) -> None:
        """End now; what is still on its way is lost. In the loop's thread; repeatable."""
        if self.done:
            return
        self.done = True
        self._close_source()
        if isinstance(self._sink, int):
            os.close(self._sink)
        else:
            self._sink.close()
        if self._kept is not None:
            self._kept.close()
        self._ended(self)

    def _end(self) -> None:
        """The source has ended. An output stays open until its reader has taken everything, but not for long.

        There are clients that close their end as soon as they hear of the exit (ctr 1.6), and the exit is
        told once the output is out: out of the fifo, then.
        """
        self._close_source()
        if self._framed:
            self._linger(time.monotonic() + LINGER)
        else:
            self.close()

    def _linger(self, until: float) -> None:
        if not self.done and _unread(self._sink) and time.monotonic() < until:
            self._loop.call_later(LINGER_STEP, lambda: self._linger(until))
        else:
            self.close()

    def _close_source(self) -> None:
        self._wait_for(-1, 0)
        source, self._source = self._source, -1
        if source >= 0:
            os.close(source)

    def _wait_for_source(self) -> None:
        self._wait_for(self._source, READABLE)

    def _wait_for_sink(self) -> None:
        assert isinstance(self._sink, int)
        self._wait_for(self._sink, WRITABLE)

    def _wait_for(self, fd: int, events: int) -> None:
        if fd == self._waiting:
            return
        if self._waiting >= 0:
            self._loop.remove(self._waiting)
        self._waiting = fd
        if fd >= 0:
            self._add(fd, events)

    def _add(self, fd: int, events: int) -> None:
        try:
            self._loop.add(fd, events, self._ready)
        except PermissionError:  # epoll(7) refuses regular files, which are always ready
            self._waiting = -1
            self._loop.call_soon(lambda: self._ready(events))

    def _ready(self, _events: int) -> None:
        if self.done:
            return
        try:
            for turn in range(TURNS):
                if not self._move(first=turn == 0):
                    break
        except OSError as exc:
            self.close()  # it would fail again at once
            if exc.errno not in GONE:
                raise

    def _move(self, *, first: bool) -> bool:
        """Move one chunk. False when there is something to wait for, or nothing more to come."""
        if self._left == 0 and not self._pending:
            return self._read_header()
        return self._move_by_splice(first=first) if self._splice else self._move_by_copy()

    def _read_header(self) -> bool:
        """The length of the next frame; 0 is the end, and so is an end without it (the guest died)."""
        self._wait_for_source()
        try:
            part = os.read(self._source, HEADER - len(self._header))
        except BlockingIOError:
            return False
        self._header += part
        if part and len(self._header) < HEADER:
            return True
        self._left = int.from_bytes(self._header, "big") if part else 0
        self._header = b""
        if 0 < self._left <= CHUNK:
            return True
        self._end()
        return False

    def _moved(self, count: int) -> None:
        if self._framed:
            self._left -= count

    def _move_by_splice(self, *, first: bool) -> bool:
        assert isinstance(self._sink, int)
        try:
            flags = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
            moved = os.splice(self._source, self._sink, self._left, flags=flags)
        except BlockingIOError:
            # Either the source is empty or the sink is full, and splice does not say which. The one that was
            # waited for was ready, so it is the other, unless something was moved since.
            if first:
                self._wait_for_sink() if self._waiting == self._source else self._wait_for_source()
            return False
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            self._splice = False  # neither end is a pipe, or a file is in append mode
            return True
        self._moved(moved)
        if moved == 0:
            self._end()
        elif self._waiting != self._source:
            self._wait_for_source()
        return moved > 0

    def _move_by_copy(self) -> bool:
        if not self._pending:
            try:
                self._pending = os.read(self._source, min(COPY_CHUNK, self._left))
            except BlockingIOError:
                self._wait_for_source()
                return False
            self._moved(len(self._pending))
            if not self._pending:
                self._end()
                return False
            if self._kept is not None:
                self._kept.write(self._pending)
        return self._write_pending()

    def _write_pending(self) -> bool:
        if not isinstance(self._sink, int):
            self._sink.write(self._pending)
            self._pending = b""
            return True
        try:
            self._pending = self._pending[os.write(self._sink, self._pending) :]
        except BlockingIOError:
            self._wait_for_sink()
            return False
        except OSError as exc:
            if self._kept is None or exc.errno not in GONE:
                raise
            self._keep_only()
        return True

    def _keep_only(self) -> None:
        """The reader of a tee is gone: what it did not take is kept already, and so is what follows."""
        assert isinstance(self._sink, int) and self._kept is not None
        self._wait_for_source()
        os.close(self._sink)
        self._sink, self._kept, self._pending = self._kept, None, b""


def _unread(sink: int | Sink) -> int:
    """Bytes in a fifo that nobody has read yet; 0 for anything else."""
    if not isinstance(sink, int):
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(sink, termios.FIONREAD, bytes(4)), "little")
    except OSError:
        return 0
