"""Where the time of a start goes: spans of the pod process, and a line of them for the log.

Owns: the clock (CLOCK_MONOTONIC, nanoseconds), the bounded list of spans of this process, which is one pod's. Must not
know: what the steps are, who asks for them. Used by bootstrap.py, the task service and shim/sandbox; told by
shim/task/tracing.py. Light imports only: `start` loads it.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

KEPT = 512  # spans; a start has about twenty
CALL = "call"  # a request of the engine
STEP = "step"  # a part of one


class Span:
    """`with Span("create", id):` from here to the end of the block; also what is kept. Times in nanoseconds."""

    __slots__ = ("begin", "end", "kind", "name", "object")

    def __init__(self, name: str, object: str = "", kind: str = STEP, begin: int = 0, end: int = 0) -> None:
        self.name = name
        self.object = object
        self.kind = kind
        self.begin = begin
        self.end = end

    def __enter__(self) -> Span:
        self.begin = time.monotonic_ns()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.end = time.monotonic_ns()
        keep(self)


_spans: list[Span] = []
_process_began = 0


def keep(span: Span) -> None:
    """Add a finished span; the oldest ones make room."""
    _spans.append(span)
    del _spans[:-KEPT]


def spans() -> list[Span]:
    """What is kept, in the order in which it ended."""
    return list(_spans)


def forget() -> None:
    """What was kept so far was for no pod."""
    _spans.clear()


def note_process_start() -> None:
    """Remember when the calling process was executed, for `spawned` in the child that it forks.

    starttime (proc(5), stat, field 22) counts ticks of CLOCK_BOOTTIME; usually a tick is 10 ms.
    """
    global _process_began
    with open("/proc/self/stat", "rb") as stream:
        ticks = int(stream.read().rpartition(b")")[2].split()[19])
    age = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
    _process_began = time.monotonic_ns() - age


def process_began() -> int:
    """What `note_process_start` found; 0 before."""
    return _process_began


def adopt_process_start(began: int) -> None:
    """This process was forked for one that was executed then."""
    global _process_began
    _process_began = began


def spawned() -> None:
    """This process is ready to serve: the span from the execution of `start` until now."""
    keep(Span("spawn", begin=_process_began or time.monotonic_ns(), end=time.monotonic_ns()))


class Marks:
    """Steps that follow one another: call `mark` at the end of each."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic_ns()
        self._steps: list[tuple[str, int]] = []

    def mark(self, step: str) -> None:
        """The step that ends now began when the one before ended."""
        now = time.monotonic_ns()
        self._steps.append((step, now - self._last))
        keep(Span(step, begin=self._last, end=now))
        self._last = now

    def line(self) -> str:
        """ "1890 ms: cgroup 12, share 3, hello 1700" """
        parts = ", ".join(f"{step} {took / 1e6:.0f}" for step, took in self._steps)
        return f"{(self._last - self._began) / 1e6:.0f} ms: {parts}"
