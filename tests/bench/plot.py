"""Starts on one logarithmic axis, as an SVG without any library: what was measured on each stack, floors and peers.

Owns: the drawing. Each sample is a dot, the middle half of them a box, the median a bar with its number. Called by `__main__`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.bench.floors import F_BOOT, F_RESTORE
from tests.bench.peers import FIRST, RUN
from tests.bench.settings import COLD, DISKS, POOL, TEMPLATE
from tests.bench.stacks import on
from tests.bench.starts import BY_HAND, CREATED, HELLO, READY, name
from tests.bench.subjects import Samples

WIDTH, LEFT, RIGHT, TOP, STEP, TITLE_STEP = 1000, 250, 80, 64, 26, 34
COLOURS = ("#c2691b", "#2563a8", "#5d7f2c")
"""of the stacks, in their order"""
OTHER, GRID, TEXT = "#666666", "#e2e2e2", "#222222"
PANELS = {
    "Bare QEMU": [("F_restore", F_RESTORE), ("F_boot", F_BOOT)],
    "Clone, from QEMU's start": [("hello", name(HELLO, TEMPLATE))],
    "Pod, from Create": [
        (f"{words}, {mode}", name(stem, mode))
        for mode in (TEMPLATE, COLD)
        for words, stem in (("ready", READY), ("created", CREATED))
    ],
    "ctr run ... echo, to its first byte": [
        *((peer, FIRST.format(peer)) for peer in ("runc", "crun", "runsc")),
        *((f"hako, {mode}", name(FIRST, mode)) for mode in (POOL, TEMPLATE, DISKS, COLD)),
    ],
    "ctr run ... echo, to its exit": [
        *((peer, RUN.format(peer)) for peer in ("runc", "crun", "runsc")),
        *((f"hako, {mode}", name(RUN, mode)) for mode in (POOL, TEMPLATE, DISKS, COLD)),
    ],
    "hako run ... echo, to its first byte": [(mode, name(BY_HAND, mode)) for mode in (TEMPLATE, DISKS, COLD)],
}


class Mark:
    """One line of the plot: `values` in seconds."""

    def __init__(self, label: str, colour: str, values: Sequence[float]) -> None:
        self.label = label
        self.colour = colour
        self.values = sorted(values)


def starts(samples: Samples, stacks: Sequence[str], title: str) -> str:
    """The plot of a run; what it did not measure is left out."""
    panels = {words: [mark for entry in found for mark in _marks(samples, stacks, *entry)] for words, found in PANELS.items()}
    return svg({words: marks for words, marks in panels.items() if marks}, dict(zip(stacks, COLOURS, strict=False)), title)


def _marks(samples: Samples, stacks: Sequence[str], label: str, subject: str) -> list[Mark]:
    """On each stack, or on none."""
    on_stacks = [Mark(label, colour, samples.wall(on(subject, stack))) for stack, colour in zip(stacks, COLOURS, strict=False)]
    return [mark for mark in (*on_stacks, Mark(label, OTHER, samples.wall(subject))) if mark.values and mark.values[0] > 0]


def svg(panels: dict[str, list[Mark]], legend: dict[str, str], title: str) -> str:
    """`panels`: title -> marks, `legend`: name -> colour."""
    axis = _Axis([value for marks in panels.values() for mark in marks for value in mark.values])
    rows, y = list[str](), TOP
    for words, marks in panels.items():
        y += TITLE_STEP
        rows.append(_text(12, y - 4, words, weight="bold"))
        for number, mark in enumerate(marks):
            first = number == 0 or marks[number - 1].label != mark.label
            y += STEP if first else STEP * 2 // 3
            rows += [_text(LEFT - 12, y + 4, mark.label, "end")] if first else []
            rows += _drawn(mark, axis, y)
    height = y + 50
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">'
    parts = [_text(12, 22, f"Starts: {title}", weight="bold"), *_legend(legend), *axis.grid(y + 16), *rows]
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height}" fill="white"/>', *parts, "</svg>"]) + "\n"


def _legend(legend: dict[str, str]) -> list[str]:
    found, x = [], 12
    for words, colour in {**legend, "no VM of ours": OTHER}.items():
        found += [f'<rect x="{x}" y="36" width="12" height="12" fill="{colour}"/>', _text(x + 18, 47, words)]
        x += 50 + 8 * len(words)
    return [*found, _text(x, 47, "dots: runs; box: the middle half; bar and number: median, ms")]


def _drawn(mark: Mark, axis: _Axis, y: int) -> list[str]:
    low, middle, high = _quartiles(mark.values)
    left, width = axis.x(low), max(axis.x(high) - axis.x(low), 1)
    return [
        f'<rect x="{left:.1f}" y="{y - 6}" width="{width:.1f}" height="12" fill="{mark.colour}" fill-opacity="0.25"/>',
        *(f'<circle cx="{axis.x(v):.1f}" cy="{y}" r="2.2" fill="{mark.colour}" fill-opacity="0.55"/>' for v in mark.values),
        f'<rect x="{axis.x(middle) - 1.5:.1f}" y="{y - 8}" width="3" height="16" fill="{mark.colour}"/>',
        _text(axis.x(mark.values[-1]) + 8, y + 4, f"{middle * 1000:.0f}", colour=mark.colour),
    ]


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


class _Axis:
    """From the 1, 2 or 5 of a power of ten below the least value to the one above the largest."""

    def __init__(self, values: Sequence[float]) -> None:
        steps = [factor * 10.0**power for power in range(-5, 4) for factor in (1, 2, 5)]
        low, high = min(values, default=0.01), max(values, default=1.0)
        self._steps = [step for step in steps if low / 2.5 < step < high * 2.5]
        self._low, self._high = math.log10(min(self._steps[0], low)), math.log10(max(self._steps[-1], high))

    def x(self, value: float) -> float:
        """Where a value is."""
        return LEFT + (math.log10(value) - self._low) / (self._high - self._low) * (WIDTH - LEFT - RIGHT)

    def grid(self, bottom: int) -> list[str]:
        """A line and a word for each step."""
        found = []
        for step in self._steps:
            x = self.x(step)
            found.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{GRID}"/>')
            found.append(_text(x, bottom + 16, f"{step * 1000:g} ms", "middle"))
        return found


def _text(x: float, y: float, words: str, anchor: str = "start", *, weight: str = "normal", colour: str = TEXT) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">{escape(words)}</text>'
    )
