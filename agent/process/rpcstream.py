"""Streams that are read and written by RPC (Kata's ReadStdout, ReadStderr, WriteStdin), for callers without
raw streams.

Owns: the callers that wait. Data stay in the kernel's pipe (64 KiB) until somebody asks, so a process whose
output nobody reads stops, and the agent holds nothing. Called by agent.process.stdio; the descriptors belong
to these objects.
"""

from __future__ import annotations

import os

from agent.linux.loop import READABLE, WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.linux.loop import Loop

    ReadDone = Callable[[bytes], None]
    WriteDone = Callable[[int, Exception | None], None]

MAX_READ = 1 << 20


class Output:
    """The agent's end of a process's stdout or stderr."""

    __slots__ = ("_busy", "_fd", "_in_loop", "_loop", "_on_end", "_waiting", "received")

    def __init__(self, loop: Loop, fd: int, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._on_end = on_end
        self._waiting: list[tuple[int, ReadDone]] = []
        self._in_loop = False
        self._busy = False
        self.received = 0
        os.set_blocking(fd, False)

    def read(self, size: int, done: ReadDone) -> Callable[[], None]:
        """Call `done` with 1 to `size` bytes once there are some, with b"" at the end, maybe before this
        returns. Returns what cancels the wish.
        """
        entry = (min(size, MAX_READ), done)
        self._waiting.append(entry)
        self._serve()
        return lambda: self._cancel(entry)

    def has_reader(self) -> bool:
        """Whether somebody waits for output."""
        return bool(self._waiting)

    def end(self) -> None:
        """Close; all who wait get the end, and everybody who comes later."""
        if self._fd < 0:
            return
        self._loop.remove(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._on_end()
        self._serve()

    def _serve(self, _events: int = 0) -> None:
        """Answer those who wait as far as there are data, then wait for more. Callers may ask again."""
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                data = self._take(self._waiting[0][0])
                if data is None:
                    break
                self._waiting.pop(0)[1](data)
        finally:
            self._busy = False
        self._listen(wanted=bool(self._waiting))

    def _take(self, size: int) -> bytes | None:
        """Up to `size` bytes, b"" at the end, None when there are none yet."""
        if self._fd < 0:
            return b""
        try:
            data = os.read(self._fd, size)
        except BlockingIOError:
            return None
        except OSError:  # EIO: a terminal that nobody has open
            data = b""
        self.received += len(data)
        if not data:
            self.end()
        return data

    def _listen(self, *, wanted: bool) -> None:
        wanted = wanted and self._fd >= 0
        if wanted and not self._in_loop:
            self._loop.add(self._fd, READABLE, self._serve)
        elif self._in_loop and not wanted:
            self._loop.remove(self._fd)
        self._in_loop = wanted

    def _cancel(self, entry: tuple[int, ReadDone]) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)
            self._listen(wanted=bool(self._waiting))


class Input:
    """The agent's end of a process's stdin."""

    __slots__ = ("_busy", "_closing", "_fd", "_in_loop", "_loop", "_queue")

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._queue: list[tuple[bytes, int, WriteDone]] = []
        self._in_loop = False
        self._busy = False
        self._closing = False
        os.set_blocking(fd, False)

    def write(self, data: bytes, done: WriteDone) -> None:
        """Write all of `data`, then call `done(len(data), None)`; `done(written, error)` if it cannot be."""
        if self._fd < 0 or self._closing:
            done(0, _closed())
            return
        self._queue.append((data, 0, done))
        self._flush()

    def close(self) -> None:
        """Close once everything is written."""
        self._closing = True
        self._flush()

    def end(self) -> None:
        """Close now; the process is gone."""
        self._close_now(_closed())

    def _flush(self, _events: int = 0) -> None:
        """Write what the pipe takes, then wait until it takes more. Callers may write again in `done`."""
        if self._busy:
            return
        self._busy = True
        try:
            while self._queue and self._write_first():
                pass
        finally:
            self._busy = False
        if self._closing and not self._queue:
            self._close_now(_closed())
        self._listen(wanted=bool(self._queue))

    def _write_first(self) -> bool:
        """Go on with the first in the queue; False when the pipe is full or closed."""
        data, written, done = self._queue[0]
        try:
            written += os.write(self._fd, data[written:] if written else data)
        except BlockingIOError:
            return False
        except OSError as error:
            self._close_now(error)
            return False
        if written < len(data):
            self._queue[0] = (data, written, done)
        else:
            self._queue.pop(0)
            done(written, None)
        return True

    def _listen(self, *, wanted: bool) -> None:
        wanted = wanted and self._fd >= 0
        if wanted and not self._in_loop:
            self._loop.add(self._fd, WRITABLE, self._flush)
        elif self._in_loop and not wanted:
            self._loop.remove(self._fd)
        self._in_loop = wanted

    def _close_now(self, error: OSError) -> None:
        if self._fd >= 0:
            self._loop.remove(self._fd)
            self._in_loop = False
            os.close(self._fd)
            self._fd = -1
        queue, self._queue = self._queue, []
        for _, written, done in queue:
            done(written, error)


def _closed() -> OSError:
    return BrokenPipeError("the process's stdin is closed")
