"""Where the time of a recipe goes: a name and a duration per step, in one line for the log.

Owns: the clock and the line's form. Must not know: what the steps are. Used by sandbox/builder.py and sandbox.py.
"""

from __future__ import annotations

import time


class Marks:
    """Call `mark` at the end of each step."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._steps: list[tuple[str, float]] = []

    def mark(self, step: str) -> None:
        """The step that ends now began when the one before ended."""
        now = time.monotonic()
        self._steps.append((step, now - self._last))
        self._last = now

    def line(self) -> str:
        """ "1890 ms: cgroup 12, share 3, hello 1700" """
        parts = ", ".join(f"{step} {seconds * 1000:.0f}" for step, seconds in self._steps)
        return f"{(self._last - self._began) * 1000:.0f} ms: {parts}"
