"""When the agent came up and what its slow calls took: a bounded list of spans on the guest's monotonic clock.

Owns: that list. Must not know: what the calls do. Filled by start.py, service.py and rehearsal.py; the host asks for it by
hako.Trace (agent/api/trace.proto) and maps it to its own clock.
"""

from __future__ import annotations

from time import monotonic_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Span = tuple[str, str, int, int]

KEPT = 64
KIND = "guest"

_spans: list[Span] = []
_others: list[Callable[[], Span | None]] = []


def keep(name: str, object: str, begin: int) -> None:
    """A span that ends now."""
    _spans.append((name, object, begin, monotonic_ns()))
    del _spans[:-KEPT]


def ask(other: Callable[[], Span | None]) -> None:
    """Whoever wants to know all is told this one's span too, once it is over: somebody else measures it."""
    _others.append(other)


def all() -> list[Span]:
    """(name, container or exec, begin, end), in the order in which they ended."""
    for other in _others:
        found = other()
        if found is not None:
            _spans.append(found)
    return list(_spans)


def forget() -> None:
    """What was kept so far was not for anybody's pod."""
    _spans.clear()
