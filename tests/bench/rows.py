"""What is measured and what is made of it: subjects run in turn, rows that compare two of them, single figures.

Owns: the interleaving (every subject once a round, so that each shares the machine's mood with its peers), the bounds.
Knows no engine. Called by `__main__`; groups (`catalogue`) are made of these.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.bench.measure import RunFailed, Sample, measured
from tests.bench.stats import ratio_interval

Say = Callable[[str], None]


class Subject(NamedTuple):
    """One thing to be timed: `run` does it once and returns its wall seconds.

    Not `alone`: the time comes from what another subject did, or from what goes on anyway, and its processor time
    says nothing.
    """

    name: str
    run: Callable[[], float]
    alone: bool = True


class Row(NamedTuple):
    """A ratio of two subjects' times, `ours` / `against`, or their speeds' with `speed` (against / ours).

    `must` and `aim` bound it: from above, with `speed` from below; None where it is only reported.
    """

    name: str
    ours: str
    against: str
    must: float | None = None
    aim: float | None = None
    speed: bool = False


class Result(NamedTuple):
    """A row that was measured; `low` and `high` bound the ratio with 95 %; `ours` and `against` are medians in seconds.

    `cpu` is the ratio of processor times, which other work on the machine hardly moves; None where there are none.
    """

    row: Row
    ratio: float
    low: float
    high: float
    ours: float
    against: float
    cpu: float | None = None

    @property
    def verdict(self) -> str:
        """"aim", "met", "missed", or "" where nothing is asked for."""
        return verdict(self.ratio, self.row.must, self.row.aim, at_least=self.row.speed)


class Figure(NamedTuple):
    """A single value with its unit; bounded from above."""

    name: str
    value: float
    unit: str
    must: float | None = None
    aim: float | None = None

    @property
    def verdict(self) -> str:
        """See Result."""
        return verdict(self.value, self.must, self.aim, at_least=False)


def verdict(value: float, must: float | None, aim: float | None, *, at_least: bool) -> str:
    """Which of the two bounds is met."""
    sign = -1 if at_least else 1
    if aim is not None and value * sign <= aim * sign:
        return "aim"
    if must is None:
        return ""
    return "met" if value * sign <= must * sign else "missed"


class Samples:
    """What was measured so far: subject -> samples; and the subjects that failed, with the reason."""

    def __init__(self) -> None:
        self.taken: dict[str, list[Sample]] = {}
        self.failed: dict[str, str] = {}

    def take(self, subject: Subject, *, keep: bool) -> None:
        """Run a subject once. One that fails is left out from then on: half a sample compares with nothing."""
        if subject.name in self.failed:
            return
        try:
            sample = measured(subject.run) if subject.alone else Sample(subject.run(), None)
        except (RunFailed, OSError, RuntimeError, AssertionError) as exc:
            self.failed[subject.name] = str(exc)
            self.taken.pop(subject.name, None)
            return
        if keep:
            self.taken.setdefault(subject.name, []).append(sample)

    def wall(self, name: str) -> list[float]:
        """A subject's wall seconds."""
        return [sample.wall for sample in self.taken.get(name, [])]

    def cpu(self, name: str) -> list[float]:
        """A subject's processor seconds."""
        return [sample.cpu for sample in self.taken.get(name, []) if sample.cpu is not None]


def interleave(subjects: Iterable[Subject], rounds: int, samples: Samples, say: Say) -> None:
    """Every subject once a round; a first round, that fills caches, is thrown away."""
    ordered = list(subjects)
    for number in range(rounds + 1):
        for subject in ordered:
            known = subject.name in samples.failed
            samples.take(subject, keep=number > 0)
            if not known and subject.name in samples.failed:
                say(f"FAILED {subject.name}: {samples.failed[subject.name]}")
        say(f"round {number} of {rounds}" if number else "round 0, thrown away")


def results(rows: Iterable[Row], samples: Samples) -> list[Result]:
    """The rows whose subjects were measured."""
    found = []
    for row in rows:
        ours, against = samples.wall(row.ours), samples.wall(row.against)
        pairs = min(len(ours), len(against))
        if not pairs:
            continue
        upper, lower = (against, ours) if row.speed else (ours, against)
        ratio = ratio_interval(upper[:pairs], lower[:pairs])
        medians = (statistics.median(ours), statistics.median(against))
        found.append(Result(row, *ratio, *medians, _cpu_ratio(row, samples)))
    return found


def _cpu_ratio(row: Row, samples: Samples) -> float | None:
    ours, against = samples.cpu(row.ours), samples.cpu(row.against)
    if not ours or not against or row.speed:
        return None
    return statistics.median(ours) / statistics.median(against)


