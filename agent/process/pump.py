"""Moves a stream's bytes from one descriptor to another inside the loop, as fast as the slower end takes
them.

Owns: splice(2) where one end is a pipe, read and write where none is (a terminal), and waiting on exactly the
end that holds the stream up, so that a slow reader stops the writer and nothing is kept in memory. Knows
nothing of processes. Called by agent.process.stdio. Both descriptors are made non-blocking; the pump does not
close them.
"""

from __future__ import annotations

import errno
import os
import select

from agent.linux.loop import READABLE, WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.linux.loop import Loop

CHUNK = 1 << 16
BURST = 16
"""Chunks moved before the loop serves others."""
_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
_SOURCE_EMPTY, _SINK_FULL, _MOVED, _ENDED = range(4)


class Pump:
    """One direction of one stream. `on_end` is called once: end of the source, or an end is broken."""

    __slots__ = (
        "_loop",
        "_on_end",
        "_pending",
        "_sink",
        "_source",
        "_splice",
        "_waiting_for",
        "ended",
        "moved",
    )

    def __init__(self, loop: Loop, source: int, sink: int, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._on_end = on_end
        self._splice = True
        self._pending = b""
        self._waiting_for = -1
        self.ended = False
        self.moved = 0
        """bytes so far"""
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
                self._end()
            else:
                self.end_when_quiet(seconds)

        self._loop.call_later(seconds, check)

    def run(self) -> None:
        """Move what can be moved now; then wait for the end that is in the way."""
        for _ in range(BURST):
            outcome = self._move()
            if outcome == _MOVED:
                continue
            if outcome == _ENDED:
                self._end()
            elif outcome == _SINK_FULL:
                self._wait(self._sink, WRITABLE)
            else:
                self._wait(self._source, READABLE)
            return

    def _ready(self, _events: int) -> None:
        if not self.ended:
            self.run()

    def _move(self) -> int:
        if not self._splice:
            return self._copy()
        try:
            count = os.splice(self._source, self._sink, CHUNK, flags=_FLAGS)
        except BlockingIOError:
            return _SINK_FULL if _has_data(self._source) else _SOURCE_EMPTY
        except OSError as error:
            if error.errno == errno.EINVAL:  # neither end is a pipe
                self._splice = False
                return self._copy()
            return _ENDED  # EPIPE, ECONNRESET, or EIO of a terminal that nobody has open
        self.moved += count
        return _MOVED if count else _ENDED

    def _copy(self) -> int:
        try:
            if not self._pending:
                self._pending = os.read(self._source, CHUNK)
                if not self._pending:
                    return _ENDED
        except BlockingIOError:
            return _SOURCE_EMPTY
        except OSError:
            return _ENDED
        try:
            count = os.write(self._sink, self._pending)
        except BlockingIOError:
            return _SINK_FULL
        except OSError:
            return _ENDED
        self._pending = self._pending[count:]
        self.moved += count
        return _MOVED

    def _wait(self, fd: int, events: int) -> None:
        """Wait for one end only: epoll reports a hang-up of the other one again and again."""
        if self._waiting_for != fd:
            self._unwait()
            self._loop.add(fd, events, self._ready)
            self._waiting_for = fd

    def _unwait(self) -> None:
        if self._waiting_for >= 0:
            self._loop.remove(self._waiting_for)
            self._waiting_for = -1

    def _end(self) -> None:
        self.stop()
        self._on_end()


def _has_data(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
