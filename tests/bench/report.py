"""A run's outcome as JSON, as Markdown and as a plot.

Owns: their form. Called by `__main__`.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tests.bench.rows import Figure, Result, Samples
from tests.bench.stats import summary


class Outcome(NamedTuple):
    """Everything that a run found out. `command`: how it was called; `steps`: the shim's own account, by mode."""

    command: str
    machine: Mapping[str, str]
    samples: Samples
    results: Sequence[Result]
    figures: Sequence[Figure]
    steps: Mapping[str, Sequence[str]]
    missing: Mapping[str, str]


def as_json(outcome: Outcome) -> dict[str, object]:
    """All samples and what was made of them; seconds."""
    return {
        "command": outcome.command,
        "machine": dict(outcome.machine),
        "samples": {name: [s._asdict() for s in taken] for name, taken in outcome.samples.taken.items()},
        "rows": [
            {**result.row._asdict(), "ratio": result.ratio, "low": result.low, "high": result.high,
             "ours_s": result.ours, "against_s": result.against, "cpu": result.cpu, "verdict": result.verdict}
            for result in outcome.results
        ],
        "figures": [{**figure._asdict(), "verdict": figure.verdict} for figure in outcome.figures],
        "steps": {mode: list(lines) for mode, lines in outcome.steps.items()},
        "missing": dict(outcome.missing),
        "failed": dict(outcome.samples.failed),
    }


def as_markdown(outcome: Outcome) -> str:
    """The tables."""
    machine = "; ".join(f"{name}: {value}" for name, value in outcome.machine.items())
    parts = [
        f"`{outcome.command}`\n\n{machine}",
        _ratios(outcome.results),
        _figures(outcome.figures),
        _subjects(outcome.samples),
        _steps(outcome.steps),
        _reasons("Not measured", outcome.missing),
        _reasons("Failed", outcome.samples.failed),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _ratios(results: Iterable[Result]) -> str:
    rows = [
        (
            result.row.name, _digits(result.ours * 1000), _digits(result.against * 1000),
            f"{result.ratio:.2f}", f"{result.low:.2f} - {result.high:.2f}",
            "" if result.cpu is None else f"{result.cpu:.2f}",
            _bound(result.row.must, at_least=result.row.speed), _bound(result.row.aim, at_least=result.row.speed),
            result.verdict,
        )
        for result in results
    ]  # fmt: skip
    return _table(("row", "ours, ms", "against", "ratio", "95 % interval", "of CPU", "must", "aim", ""), rows)


def _bound(value: float | None, *, at_least: bool) -> str:
    return "" if value is None else f"{'>=' if at_least else '<='} {value:g}"


def _figures(figures: Iterable[Figure]) -> str:
    rows = [
        (f.name, f"{f.value:.1f} {f.unit}", _bound(f.must, at_least=False), _bound(f.aim, at_least=False), f.verdict)
        for f in figures
    ]
    return _table(("figure", "value", "must", "aim", ""), rows)


def _subjects(samples: Samples) -> str:
    rows = []
    for name, taken in samples.taken.items():
        wall = summary([sample.wall * 1000 for sample in taken])
        cpu = [sample.cpu * 1000 for sample in taken if sample.cpu is not None]
        rows.append(
            (name, *(_digits(wall[key]) for key in ("median", "mad", "min", "max")),
             _digits(statistics.median(cpu)) if cpu else "", f"{wall['n']:g}")
        )  # fmt: skip
    return _table(("measured", "median ms", "MAD", "min", "max", "CPU ms", "n"), rows)


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _steps(steps: Mapping[str, Sequence[str]]) -> str:
    """Median milliseconds of each step of a start, as the shim logs them."""
    rows = []
    for mode, lines in steps.items():
        by_step: dict[str, list[int]] = {}
        for line in lines:
            for step, value in re.findall(r"(?:: |, )([^,:]+?) (\d+)(?=,|$)", line):
                by_step.setdefault(step, []).append(int(value))
        rows.append((mode, ", ".join(f"{step} {statistics.median(values):.0f}" for step, values in by_step.items())))
    return _table(("a pod's start by its own account, ms", ""), rows)


def _reasons(title: str, reasons: Mapping[str, str]) -> str:
    lines = [f"- {name}: {' '.join(reason.split())[:300]}" for name, reason in reasons.items()]
    return "\n".join([f"{title}:", "", *lines]) if lines else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
