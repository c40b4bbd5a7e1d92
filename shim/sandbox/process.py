"""One process in the guest as the host sees it: a container's init or an exec.

Owns: its state, its exit (set once) and who wants to know it, its streams, a window size that came too
early. Must not know: the agent, events. Used by container.py; `on_exit` by the task service (Wait).
Thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from shim.oci.spec import Process as ProcessSpec
from shim.sandbox.state import Status
from shim.stdio.fifo import Names
from shim.stdio.relay import Relay
from shim.stdio.rpcrelay import RpcRelay

KILLED = 128 + 9
"""Exit status of a process whose machine went away under it."""


class Exit(NamedTuple):
    """How a process ended: `status` 0 - 255 (128 + n for a signal); `at` in nanoseconds of the host's
    clock.
    """

    status: int
    at: int

    @classmethod
    def now(cls, status: int) -> Exit:
        """An exit with this status at this moment."""
        return cls(status & 0xFF, time.time_ns())


class GuestProcess:
    """`exec_id` is "" for a container's init; `pid` is the host pid that the engine sees (the stub's)."""

    def __init__(self, container_id: str, exec_id: str, names: Names, spec: ProcessSpec | None) -> None:
        self.container_id = container_id
        self.exec_id = exec_id
        self.names = names
        self.spec = spec
        self.pid = 0
        self.status = Status.CREATING
        self.exit: Exit | None = None
        self.size: tuple[int, int] | None = None
        self.relay: Relay | RpcRelay | None = None
        self.announced = threading.Event()
        """Clear while a Start is under way: its exit is not told before the start was."""
        self.announced.set()
        self.told = threading.Event()
        """Set when its end was passed on to the listener."""
        self.verbs = threading.RLock()
        """Start and Delete exclude each other."""
        self.stdin_closed = False
        self._ending = False
        self._lock = threading.Lock()
        self._waiting: list[Callable[[Exit], None]] = []

    @property
    def id(self) -> str:
        """The id that events carry: the exec's, or the container's for its init."""
        return self.exec_id or self.container_id

    def on_exit(self, callback: Callable[[Exit], None]) -> None:
        """Call `callback` once when the process has ended; at once if it has."""
        with self._lock:
            if self.exit is None:
                self._waiting.append(callback)
                return
        callback(self.exit)

    def take_end(self) -> bool:
        """Claim to be the one who carries out the process's end; False for everybody but the first."""
        with self._lock:
            first, self._ending = not self._ending, True
            return first

    def finish(self, exit: Exit) -> bool:
        """The process has ended: tell everybody who waits. False if that was known already."""
        with self._lock:
            if self.exit is not None:
                return False
            self.exit = exit
            self.status = Status.STOPPED
            waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback(exit)
        return True
