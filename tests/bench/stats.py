"""Medians, spread and ratios of interleaved samples.

Owns: the arithmetic of the bench. Knows nothing about what was measured. Called by rows and the report.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence


def mad(values: Sequence[float]) -> float:
    """Median absolute deviation: a spread that one slow run on a shared machine does not move."""
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, spread and extremes of `values` (not empty), in the unit of `values`."""
    return {
        "n": len(values),
        "median": statistics.median(values),
        "mad": mad(values),
        "min": min(values),
        "max": max(values),
    }


def ratio_interval(ours: Sequence[float], theirs: Sequence[float], rounds: int = 2000) -> tuple[float, float, float]:
    """Ratio of the medians with a 95 % bootstrap interval.

    Pairs are resampled together, because an interleaved pair shares the machine's mood. The generator is seeded: the same
    samples give the same interval. Returns (ratio, low, high).
    """
    pairs = list(zip(ours, theirs, strict=True))
    generator = random.Random(1)
    ratios = sorted(_ratio(generator.choices(pairs, k=len(pairs))) for _ in range(rounds))
    return _ratio(pairs), ratios[int(rounds * 0.025)], ratios[int(rounds * 0.975)]


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
