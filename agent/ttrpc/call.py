"""What a handler sees of its call, and the answer that comes later. No sockets here; server.py makes them."""

from __future__ import annotations

from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Call:
    """One request as its handler sees it. Read-only."""

    __slots__ = ("metadata", "method", "service", "timeout_nano")

    def __init__(self, service: str, method: str, metadata: dict[str, list[str]], timeout_nano: int) -> None:
        self.service = service
        self.method = method
        self.metadata = metadata
        """The caller's metadata: lower-case key to its values in order."""
        self.timeout_nano = timeout_nano
        """What the caller waits, 0 or less: for ever. The server itself answers DEADLINE_EXCEEDED then."""

    @property
    def timeout(self) -> float | None:
        """The same in seconds, None for ever. Most calls are answered before anybody needs to know."""
        return self.timeout_nano / 1e9 if self.timeout_nano > 0 else None


class Deferred:
    """An answer that comes later: a handler returns it, and somebody calls `resolve` or `fail` once.

    From any thread if the server has an executor, else on the loop's. Once answered or cancelled, further
    calls do nothing, so that the one who answers need not know whether the caller has gone.
    """

    __slots__ = ("_lock", "_on_cancel", "_on_settled", "_outcome")

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._outcome: tuple[Any, Exception | None] | None = None
        self._on_settled: Callable[[Any, Exception | None], None] | None = None
        self._on_cancel: Callable[[], None] | None = None

    def resolve(self, message: Any) -> None:
        """Answer with the response message."""
        self._settle((message, None))

    def fail(self, exc: Exception) -> None:
        """Answer with the status that the exception stands for (`status.status_of`)."""
        self._settle((None, exc))

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call back, on the loop, if the caller goes away or its time is over before an answer came."""
        self._on_cancel = callback

    @property
    def settled(self) -> bool:
        """True once it was answered or cancelled."""
        return self._outcome is not None

    def _settle(self, outcome: tuple[Any, Exception | None]) -> None:
        with self._lock:
            if self._outcome is not None:
                return
            self._outcome = outcome
            on_settled = self._on_settled
        if on_settled is not None:
            on_settled(*outcome)

    # For the server.

    def bind(self, on_settled: Callable[[Any, Exception | None], None]) -> None:
        """Where the answer goes; at once if it is there already."""
        with self._lock:
            outcome = self._outcome
            if outcome is None:
                self._on_settled = on_settled
        if outcome is not None:
            on_settled(*outcome)

    def cancel(self) -> None:
        """The answer is not wanted any more."""
        with self._lock:
            if self._outcome is not None:
                return
            self._outcome = (None, None)
        if self._on_cancel is not None:
            self._on_cancel()
