"""What a row of the bench is, and how rows are run: all of a run's subjects in turn, round after round.

Owns: the interleaving. Knows no engine. Called by `__main__`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from tests.bench.measure import Sample
from tests.bench.stats import ratio_interval, summary


class Row(NamedTuple):
    """A ratio of two subjects; `must` is the largest acceptable ratio, or None where it is only reported."""

    name: str
    ours: str
    against: str
    must: float | None = None


def interleave(
    subjects: Mapping[str, Callable[[], Sample]], rounds: int, say: Callable[[str], None]
) -> dict[str, list[float]]:
    """Run every subject once a round, `rounds` times after one round that is thrown away. Wall seconds by subject."""
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, run in subjects.items():
            wall = run().wall
            if number:
                taken[name].append(wall)
        say(f"round {number} of {rounds}")
    return taken


def results(rows: Iterable[Row], samples: Mapping[str, list[float]]) -> list[dict[str, object]]:
    """The rows whose subjects were measured, with their ratio, its interval and whether `must` is met."""
    found: list[dict[str, object]] = []
    for row in rows:
        if not samples.get(row.ours) or not samples.get(row.against):
            continue
        ratio, low, high = ratio_interval(samples[row.ours], samples[row.against])
        met = None if row.must is None else ratio <= row.must
        found.append({**row._asdict(), "ratio": ratio, "low": low, "high": high, "met": met})
    return found


def table(rows: Iterable[Mapping[str, object]], samples: Mapping[str, list[float]]) -> str:
    """Both tables, subjects and ratios, as Markdown."""
    lines = ["| subject | median ms | MAD ms | min | max | n |", "|---|---|---|---|---|---|"]
    for name, values in samples.items():
        if values:
            cells = summary([value * 1000 for value in values])
            figures = " | ".join(f"{cells[key]:.1f}" for key in ("median", "mad", "min", "max"))
            lines.append(f"| {name} | {figures} | {cells['n']} |")
    lines += ["", "| row | ratio | 95 % interval | must |", "|---|---|---|---|"]
    for row in rows:
        must = "" if row["must"] is None else f"{row['must']:g} ({'met' if row['met'] else 'missed'})"
        lines.append(f"| {row['name']} | {row['ratio']:.2f} | {row['low']:.2f} - {row['high']:.2f} | {must} |")
    return "\n".join(lines)
