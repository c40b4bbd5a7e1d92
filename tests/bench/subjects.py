"""What is measured: subjects run in turn, and the samples of them.

Owns: the interleaving (every subject once a round, so that each shares the machine's mood with its peers). Knows no engine
and no rows. Called by `__main__`; groups (`catalogue`) are made of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.bench.measure import FAILURES, Sample, measured

Say = Callable[[str], None]


class Subject(NamedTuple):
    """One thing to be timed: `run` does it once and returns the wall seconds of each of its `names`.

    Several names are moments of the same run, whose processor time they share. `prepare` comes before and is not measured.
    `repeats`: how often a run does it, for the processor time of one; `parts`: names of what is a part of the run only, whose
    processor time nobody knows.
    """

    names: tuple[str, ...]
    run: Callable[[], tuple[float, ...]]
    prepare: Callable[[], object] | None = None
    repeats: int = 1
    parts: tuple[str, ...] = ()


def single(name: str, run: Callable[[], float], prepare: Callable[[], object] | None = None, repeats: int = 1) -> Subject:
    """A subject with one time."""
    return Subject((name,), lambda: (run(),), prepare, repeats)


class Samples:
    """What was measured so far: name -> samples; and the names of what failed, with the reason."""

    def __init__(self) -> None:
        self.taken: dict[str, list[Sample]] = {}
        self.failed: dict[str, str] = {}

    def take(self, subject: Subject, *, keep: bool) -> None:
        """Run a subject once. One that fails is left out from then on: half a sample compares with nothing."""
        if subject.names[0] in self.failed:
            return
        try:
            if subject.prepare is not None:
                subject.prepare()
            walls, cpu = measured(subject.run)
        except FAILURES as exc:
            self.fail(subject.names, str(exc))
            return
        if keep:
            for name, wall in zip(subject.names, walls, strict=True):
                self.add(name, Sample(wall, None if name in subject.parts else cpu / subject.repeats))

    def add(self, name: str, sample: Sample) -> None:
        """One more."""
        self.taken.setdefault(name, []).append(sample)

    def fail(self, names: Sequence[str], reason: str) -> None:
        """These have no samples."""
        for name in names:
            self.failed[name] = reason
            self.taken.pop(name, None)

    def wall(self, name: str) -> list[float]:
        """Wall seconds."""
        return [sample.wall for sample in self.taken.get(name, [])]

    def cpu(self, name: str) -> list[float]:
        """Processor seconds."""
        return [sample.cpu for sample in self.taken.get(name, []) if sample.cpu is not None]


def interleave(subjects: Sequence[Subject], rounds: int, samples: Samples, say: Say) -> None:
    """Every subject once a round, in one order and in the other; a first round, that fills caches, is thrown away."""
    for number in range(rounds + 1):
        for subject in subjects if number % 2 else reversed(subjects):
            known = subject.names[0] in samples.failed
            samples.take(subject, keep=number > 0)
            if not known and subject.names[0] in samples.failed:
                say(f"FAILED {subject.names[0]}: {samples.failed[subject.names[0]]}")
        say(f"round {number} of {rounds}" if number else "round 0, thrown away")
