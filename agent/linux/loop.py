"""One thread's event loop over epoll: readiness of descriptors, timers, calls posted from other threads.

Knows nothing of protocols. Level-triggered; callbacks must not block, and must expect a spurious wake-up (a
descriptor number may be closed and used again within one batch of events). Used by the agent, and by the
host's pod process.
"""

from __future__ import annotations

import errno
import os
import select
import time
from _heapq import heappop, heappush

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
else:
    from _collections import deque

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
HANGUP = select.EPOLLHUP
ERROR = select.EPOLLERR

_CANCELLED_TIMERS_KEPT = 64


class Timer:
    """A call to come, made by `Loop.call_later`."""

    __slots__ = ("_callback", "_loop", "_when")

    def __init__(self, loop: Loop, when: float, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._when = when
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget the call; does nothing when it was made or cancelled already."""
        if self._callback is not None:
            self._callback = None
            self._loop._timer_cancelled()

    def _take(self) -> Callable[[], None] | None:
        callback, self._callback = self._callback, None
        return callback

    def __lt__(self, other: Timer) -> bool:
        return self._when < other._when


class Loop:
    """See the module. `on_error` gets what a callback raises; without it the exception leaves `run()`."""

    def __init__(self, on_error: Callable[[Exception], None] | None = None) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._cancelled = 0
        self._posted: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._running = False
        self._on_error = on_error
        self._epoll.register(self._wake_fd, READABLE)
        self._callbacks[self._wake_fd] = self._drain_wake

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready events)` whenever fd is ready. Raises OSError (EPERM for a regular file)."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Change the events of an added fd; 0 leaves only HANGUP and ERROR, which epoll always reports."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget fd; call it before closing fd. Does nothing for an fd that is not there."""
        if self._callbacks.pop(fd, None) is None:
            return
        try:
            self._epoll.unregister(fd)
        except OSError as exc:
            # Closed before it was removed: epoll has forgotten it by itself.
            if exc.errno not in (errno.EBADF, errno.ENOENT):
                raise

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call once, `seconds` of CLOCK_MONOTONIC from now."""
        timer = Timer(self, time.monotonic() + seconds, callback)
        heappush(self._timers, timer)
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call once from the loop, after what is ready now."""
        self._posted.append(callback)

    def call_threadsafe(self, callback: Callable[[], None]) -> None:
        """`call_soon` from any thread or signal handler."""
        self._posted.append(callback)
        try:
            os.eventfd_write(self._wake_fd, 1)
        except OSError as exc:
            # The loop was closed meanwhile (EBADF): nobody is left to call.
            if exc.errno != errno.EBADF:
                raise

    def run(self) -> None:
        """Serve until `stop()`."""
        self._running = True
        while self._running:
            self.run_once(None)

    def run_once(self, timeout: float | None) -> None:
        """Wait at most `timeout` seconds (None: for ever) for one batch of events and make its calls."""
        for fd, events in self._poll(timeout):
            callback = self._callbacks.get(fd)
            if callback is not None:
                self._call(callback, events)
        self._run_timers()
        for _ in range(len(self._posted)):
            self._call(self._posted.popleft())

    def stop(self) -> None:
        """Make `run()` return after the current batch; from any thread."""
        self._running = False
        self.call_threadsafe(_nothing)

    def close(self) -> None:
        """Close the loop's own descriptors (not those added to it)."""
        self._callbacks.clear()
        self._epoll.close()
        os.close(self._wake_fd)

    def _poll(self, timeout: float | None) -> list[tuple[int, int]]:
        if self._posted:
            timeout = 0
        elif self._timers:
            until_timer = max(0.0, self._timers[0]._when - time.monotonic())
            timeout = until_timer if timeout is None else min(timeout, until_timer)
        return self._epoll.poll(timeout)

    def _run_timers(self) -> None:
        if not self._timers:
            return
        now = time.monotonic()
        while self._timers and self._timers[0]._when <= now:
            callback = heappop(self._timers)._take()
            if callback is None:
                self._cancelled -= 1
            else:
                self._call(callback)

    def _timer_cancelled(self) -> None:
        """A cancelled timer stays in the heap until its time; many of them are swept out."""
        self._cancelled += 1
        if self._cancelled > _CANCELLED_TIMERS_KEPT and self._cancelled * 2 > len(self._timers):
            self._timers = sorted(timer for timer in self._timers if timer._callback is not None)
            self._cancelled = 0

    def _call(self, callback: Callable[..., None], *args: int) -> None:
        try:
            callback(*args)
        except Exception as exc:
            if self._on_error is None:
                raise
            self._on_error(exc)

    def _drain_wake(self, _events: int) -> None:
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            pass


def _nothing() -> None:
    pass
