"""What is made of samples: rows that compare two subjects on each stack, single figures, and what is asked of them.

Owns: ratios, bounds, judging. Knows no engine and no tables. Called by `__main__`; groups (`catalogue`) have rows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tests.bench.stacks import judged, on
from tests.bench.stats import ratio_interval
from tests.bench.subjects import Samples

ALONE = ""
"""In the place of a stack's name: what was measured has to do with none."""


class Row(NamedTuple):
    """A ratio of two subjects' times, `ours` / `against`, or their speeds' with `speed` (against / ours).

    The names are without their stack; one that was measured on no stack is the same for all. `must` and `aim` bound the
    ratio: from above, with `speed` from below; None where it is only reported. `detail`: for those who look closer.
    """

    name: str
    ours: str
    against: str
    must: float | None = None
    aim: float | None = None
    speed: bool = False
    detail: bool = False


class Pair(NamedTuple):
    """What a ratio comes from: it lies between `low` and `high` with 95 %; medians in seconds.

    `cpu` is the ratio of processor times, which other work on the machine hardly moves; None where there are none.
    """

    low: float
    high: float
    ours: float
    against: float
    cpu: float | None = None


class Value(NamedTuple):
    """A figure, or a ratio with what it comes from."""

    value: float
    pair: Pair | None = None


class Figure(NamedTuple):
    """A single value of one stack, with its unit; bounded from above. `detail`: for those who look closer."""

    name: str
    value: float
    unit: str
    must: float | None = None
    aim: float | None = None
    stack: str = ALONE
    detail: bool = False


class Line(NamedTuple):
    """A row or a figure with its value on each stack. `note` says why there is none."""

    name: str
    values: Mapping[str, Value]
    must: float | None = None
    aim: float | None = None
    at_least: bool = False
    unit: str = ""
    detail: bool = False
    note: str = ""

    @property
    def judged(self) -> str:
        """The stack whose value counts."""
        return judged(self.values)

    @property
    def verdict(self) -> str:
        """On the stack that counts: "aim", "met", "missed" (of a mere aim: "aim missed"), or "": nothing is asked for."""
        return self.verdict_on(self.judged)

    def verdict_on(self, stack: str) -> str:
        """On one stack."""
        found = self.values.get(stack)
        return "" if found is None else verdict(found.value, self.must, self.aim, at_least=self.at_least)


def verdict(value: float, must: float | None, aim: float | None, *, at_least: bool) -> str:
    """Which of the two bounds is met."""
    sign = -1 if at_least else 1
    if aim is not None and value * sign <= aim * sign:
        return "aim"
    if must is None:
        return "" if aim is None else "aim missed"
    return "met" if value * sign <= must * sign else "missed"


def lines(rows: Iterable[Row], samples: Samples, stacks: Sequence[str]) -> list[Line]:
    """The rows whose subjects were measured, on each stack or on none."""
    found = []
    for row in rows:
        values = {stack: value for stack in stacks if (value := _value(row, samples, stack)) is not None}
        alone = None if values else _ratio(row, samples, row.ours, row.against)
        if alone is not None:
            values = {ALONE: alone}
        if values:
            found.append(Line(row.name, values, row.must, row.aim, row.speed, detail=row.detail))
    return found


def _value(row: Row, samples: Samples, stack: str) -> Value | None:
    """On a stack; None where neither side has to do with it."""
    names = [on(name, stack) if on(name, stack) in samples.taken else name for name in (row.ours, row.against)]
    return None if names == [row.ours, row.against] else _ratio(row, samples, *names)


def _ratio(row: Row, samples: Samples, ours: str, against: str) -> Value | None:
    walls = samples.wall(ours), samples.wall(against)
    pairs = min(map(len, walls))
    if not pairs:
        return None
    first, second = reversed(walls) if row.speed else walls
    ratio, low, high = ratio_interval(first[:pairs], second[:pairs])
    medians = [statistics.median(times) for times in walls]
    return Value(ratio, Pair(low, high, medians[0], medians[1], _cpu_ratio(row, samples, ours, against)))


def _cpu_ratio(row: Row, samples: Samples, ours: str, against: str) -> float | None:
    """Of processor times, or of their inverses for a speed."""
    times = [samples.cpu(name) for name in (ours, against)]
    if not all(times):
        return None
    first, second = map(statistics.median, reversed(times) if row.speed else times)
    return first / second if second else None


def of_figures(figures: Iterable[Figure]) -> list[Line]:
    """Figures of the same name on several stacks are one line."""
    found: dict[str, Line] = {}
    for figure in figures:
        known = found.get(figure.name)
        values = {**(known.values if known else {}), figure.stack: Value(figure.value)}
        found[figure.name] = Line(figure.name, values, figure.must, figure.aim, unit=figure.unit, detail=figure.detail)
    return list(found.values())
