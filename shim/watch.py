"""One daemon thread that waits on descriptors, and the bounded tail of what a descriptor says.

Owns: the thread `hako-watch` (started with the first descriptor) and its epoll instance; `Tail`, a ring of
the last bytes. Must not know: what the bytes mean. Called by process.py (stderr of children, their exit)
and by the hypervisor drivers (console, QMP). Callbacks run in the watching thread, so they never block and
never wait for another thread.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

TAIL_BYTES = 16 * 1024  # enough for a kernel panic with its trace, small enough for an error message


class Watcher:
    """Calls back whenever a descriptor is readable or hung up, until the callback returns False."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._lock = threading.RLock()
        self._callbacks: dict[int, Callable[[], bool]] = {}
        self._thread: threading.Thread | None = None

    def add(self, fd: int, callback: Callable[[], bool]) -> None:
        """Watch `fd`. It stays the caller's to close, after `remove` or after the callback returned False."""
        with self._lock:
            self._callbacks[fd] = callback
            self._epoll.register(fd, select.EPOLLIN)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="hako-watch", daemon=True)
                self._thread.start()

    def remove(self, fd: int) -> None:
        """Stop watching `fd`, if it is watched. When this returns, its callback is not running."""
        with self._lock:
            if self._callbacks.pop(fd, None) is not None:
                self._epoll.unregister(fd)

    def _watch(self) -> None:
        while True:
            for fd, _events in self._epoll.poll():
                self._dispatch(fd)

    def _dispatch(self, fd: int) -> None:
        with self._lock:
            callback = self._callbacks.get(fd)
            if callback is not None and not callback():
                self.remove(fd)


_watcher: tuple[int, Watcher] | None = None
_watcher_lock = threading.Lock()


def watcher() -> Watcher:
    """The watcher of this process (a forked child gets its own: threads do not survive fork)."""
    global _watcher
    with _watcher_lock:
        if _watcher is None or _watcher[0] != os.getpid():
            _watcher = (os.getpid(), Watcher())
        return _watcher[1]


class Tail:
    """The last `limit` bytes that came out of a descriptor, read as they come so that the writer never
    blocks.

    Owns `fd`. `on_data(chunk)` is called for every chunk, and once with b"" at the end, in whichever thread
    reads.
    """

    def __init__(
        self,
        fd: int,
        limit: int = TAIL_BYTES,
        on_data: Callable[[bytes], None] | None = None,
    ) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._limit = limit
        self._kept = bytearray()
        self._on_data = on_data
        self._ended = False
        self._lock = threading.RLock()
        watcher().add(fd, self._read)

    def text(self) -> str:
        """What is kept now, including what is in the pipe but was not read yet."""
        with self._lock:
            self._read()
            return self._kept.decode("utf-8", "replace")

    def close(self) -> None:
        """Take what is there, then stop reading. `text` keeps its answer."""
        if self._fd >= 0:
            watcher().remove(self._fd)  # without our lock: the watcher holds its own while it waits for ours
        with self._lock:
            self._read()
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _read(self) -> bool:
        """Take all that can be had now; False at the end."""
        with self._lock:
            while self._fd >= 0 and not self._ended:
                try:
                    chunk = os.read(self._fd, 65536)
                except BlockingIOError:
                    return True
                except OSError:  # a socket whose peer died (ECONNRESET), a pty without slaves (EIO)
                    chunk = b""
                self._keep(chunk)
            return False

    def _keep(self, chunk: bytes) -> None:
        self._kept += chunk
        del self._kept[: -self._limit]
        self._ended = not chunk
        callback = self._on_data
        if callback is not None:
            callback(chunk)
