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

    __slots__ = ("_fd", "_loop", "_on_end", "_waiting", "received")

    def __init__(self, loop: Loop, fd: int, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._on_end = on_end
        self._waiting: list[tuple[int, ReadDone]] = []
        self.received = 0
        os.set_blocking(fd, False)

    def read(self, size: int, done: ReadDone) -> Callable[[], None]:
        """Call `done` with 1 to `size` bytes once there are some, with b"" at the end. Returns what cancels
        the wish.
        """
        entry = (min(size, MAX_READ), done)
        self._waiting.append(entry)
        if len(self._waiting) == 1 and not self._serve():
            self._loop.add(self._fd, READABLE, self._ready)
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
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            done(b"")
        self._on_end()

    def _ready(self, _events: int) -> None:
        if self._serve():
            self._loop.remove(self._fd)

    def _serve(self) -> bool:
        """Answer those who wait, as far as there are data; True when nobody waits any more."""
        while self._waiting and self._fd >= 0:
            size, done = self._waiting[0]
            try:
                data = os.read(self._fd, size)
            except BlockingIOError:
                return False
            except OSError:  # EIO: a terminal that nobody has open
                data = b""
            if not data:
                self.end()
                return True
            self.received += len(data)
            self._waiting.pop(0)
            done(data)
        while self._waiting:
            self._waiting.pop(0)[1](b"")
        return True

    def _cancel(self, entry: tuple[int, ReadDone]) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)
            if not self._waiting:
                self._loop.remove(self._fd)


class Input:
    """The agent's end of a process's stdin."""

    __slots__ = ("_closing", "_fd", "_loop", "_queue")

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._queue: list[tuple[bytes, int, WriteDone]] = []
        self._closing = False
        os.set_blocking(fd, False)

    def write(self, data: bytes, done: WriteDone) -> None:
        """Write all of `data`, then call `done(len(data), None)`; `done(written, error)` when the process
        closed it.
        """
        if self._fd < 0 or self._closing:
            done(0, BrokenPipeError("the process's stdin is closed"))
            return
        self._queue.append((data, 0, done))
        if len(self._queue) == 1 and not self._flush():
            self._loop.add(self._fd, WRITABLE, self._ready)

    def close(self) -> None:
        """Close once everything is written."""
        self._closing = True
        if not self._queue:
            self._close_now(BrokenPipeError("the process's stdin is closed"))

    def end(self) -> None:
        """Close now; the process is gone."""
        self._close_now(BrokenPipeError("the process has exited"))

    def _ready(self, _events: int) -> None:
        if self._flush() and self._fd >= 0:
            self._loop.remove(self._fd)
            if self._closing:
                self.close()

    def _flush(self) -> bool:
        """Write what the pipe takes; True when nothing is left."""
        while self._queue:
            data, written, done = self._queue[0]
            try:
                written += os.write(self._fd, data[written:])
            except BlockingIOError:
                return False
            except OSError as error:
                self._close_now(error)
                return True
            if written < len(data):
                self._queue[0] = (data, written, done)
            else:
                self._queue.pop(0)
                done(written, None)
        return True

    def _close_now(self, error: OSError) -> None:
        if self._fd >= 0:
            self._loop.remove(self._fd)
            os.close(self._fd)
            self._fd = -1
        queue, self._queue = self._queue, []
        for _, written, done in queue:
            done(written, error)
