"""Every sample of every subject as a dot on a logarithmic axis, medians as bars: an SVG without any library.

Owns: the drawing. Called by `__main__`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP, STEP = 960, 330, 20, 30, 22
DOT, BAR, GRID, TEXT = "#7a9cc6", "#1f3b63", "#dddddd", "#222222"


def svg(samples: Mapping[str, Sequence[float]], title: str) -> str:
    """`samples`: subject -> seconds, each positive; subjects without any are left out."""
    shown = {name: values for name, values in samples.items() if values and min(values) > 0}
    height = TOP + STEP * (len(shown) + 2)
    axis = _Axis([value for values in shown.values() for value in values])
    parts = [_text(LEFT, 16, title, "start"), *axis.grid(height - STEP)]
    for row, (name, values) in enumerate(shown.items()):
        y = TOP + STEP * (row + 1)
        parts.append(_text(LEFT - 10, y + 4, name, "end"))
        parts += [f'<circle cx="{axis.x(v):.1f}" cy="{y}" r="3" fill="{DOT}" fill-opacity="0.6"/>' for v in values]
        middle = axis.x(statistics.median(values))
        parts.append(f'<rect x="{middle - 1:.1f}" y="{y - 8}" width="2" height="16" fill="{BAR}"/>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height}" fill="white"/>', *parts, "</svg>"]) + "\n"


class _Axis:
    """From the power of ten below the least value to the one above the largest."""

    def __init__(self, values: Sequence[float]) -> None:
        self._low = math.floor(math.log10(min(values, default=0.001)))
        self._high = max(self._low + 1, math.ceil(math.log10(max(values, default=1.0))))

    def x(self, value: float) -> float:
        """Where a value is."""
        return LEFT + (math.log10(value) - self._low) / (self._high - self._low) * (WIDTH - LEFT - RIGHT)

    def grid(self, bottom: int) -> list[str]:
        """A line and a word for each power of ten."""
        found = []
        for power in range(self._low, self._high + 1):
            x = self.x(10.0**power)
            found.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{GRID}"/>')
            found.append(_text(x, bottom + 14, f"{10.0 ** (power + 3):g} ms", "middle"))
        return found


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{TEXT}">{escape(words)}</text>'
