"""Names of the taps that hako makes: the number of the link that a tap stands behind.

Owns: that name. Called by choose.py and child.py, and by netns.py, which looks into the namespace at each start and must not load
what only the netlink child needs.
"""

from __future__ import annotations

PREFIX = "hako"  # at most 14 characters with the number; IFNAMSIZ is 16


def of_link(index: int) -> str:
    """Name of the tap that stands behind link `index`."""
    return f"{PREFIX}{index}"


def link_of(tap: str) -> int | None:
    """The link behind which our tap of this name stands; None for another's tap."""
    number = tap.removeprefix(PREFIX)
    return int(number) if tap != number and number.isascii() and number.isdigit() else None
