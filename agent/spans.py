"""When the agent came up and what its slow calls took: a bounded list of spans on the guest's monotonic clock.

Owns: that list. Must not know: what the calls do. Filled by start.py and service.py; the host asks for it by
hako.Trace (agent/api/trace.proto) and maps it to its own clock.
"""

from __future__ import annotations

from time import monotonic_ns

KEPT = 64
KIND = "guest"

_spans: list[tuple[str, str, int, int]] = []


def keep(name: str, object: str, begin: int) -> None:
    """A span that ends now."""
    _spans.append((name, object, begin, monotonic_ns()))
    del _spans[:-KEPT]


def all() -> list[tuple[str, str, int, int]]:
    """(name, container or exec, begin, end), in the order in which they ended."""
    return list(_spans)


def forget() -> None:
    """What was kept so far was not for anybody's pod."""
    _spans.clear()
