"""A run's outcome as JSON and as Markdown: a table for people (README's), and the details below it.

Owns: their form. Called by `__main__`.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tests.bench.quoted import KATA
from tests.bench.rows import ALONE, Line, Value
from tests.bench.stacks import NEWER, judged
from tests.bench.stats import summary
from tests.bench.subjects import Samples


class Outcome(NamedTuple):
    """Everything that a run found out.

    `command`: how it was called; `stacks`: their names; `sections`: title -> lines; `steps`: the shim's own account of starts,
    by mode and stack.
    """

    command: str
    machine: Mapping[str, str]
    stacks: Sequence[str]
    samples: Samples
    sections: Mapping[str, Sequence[Line]]
    steps: Mapping[str, Sequence[str]]
    missing: Mapping[str, str]


# --- JSON -------------------------------------------------------------------------------------------------


def as_json(outcome: Outcome) -> dict[str, object]:
    """All samples and what was made of them; seconds."""
    return {
        "command": outcome.command,
        "machine": dict(outcome.machine),
        "stacks": list(outcome.stacks),
        "samples": {name: [s._asdict() for s in taken] for name, taken in outcome.samples.taken.items()},
        "sections": {title: [_line(line) for line in lines] for title, lines in outcome.sections.items()},
        "steps": {mode: list(lines) for mode, lines in outcome.steps.items()},
        "quoted": KATA,
        "missing": dict(outcome.missing),
        "failed": dict(outcome.samples.failed),
    }


def _line(line: Line) -> dict[str, object]:
    values = {
        stack: {"value": value.value, **(value.pair._asdict() if value.pair else {}), "verdict": line.verdict_on(stack)}
        for stack, value in line.values.items()
    }
    return {**line._asdict(), "values": values, "judged": line.judged, "verdict": line.verdict}


# --- Markdown ---------------------------------------------------------------------------------------------


def as_markdown(outcome: Outcome) -> str:
    """The table, and the details."""
    parts = [
        f"`{outcome.command}`, {'; '.join(f'{name}: {value}' for name, value in outcome.machine.items())}.",
        _explained(outcome.stacks),
        _lines(outcome),
        KATA,
        _reasons("Not measured", outcome.missing),
        _reasons("Failed", outcome.samples.failed),
        "## Details",
        _subjects(outcome.samples),
        _details(outcome),
        _steps(outcome.steps),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _explained(stacks: Sequence[str]) -> str:
    judge = judged(stacks)
    where = f"judged on {judge}" if judge == NEWER else f"judged on {judge}, since {NEWER} is not here"
    return (
        "A cell is ours / against = ratio of the medians (95 % interval), milliseconds; for speeds the ratio is upside down. CPU:"
        " the same ratio of processor times on each stack, of whole runs until nothing of them is left, of a pool hit until the"
        f" next VM waits. =: it has to do with no stack. Rows are {where}."
    )


def _lines(outcome: Outcome) -> str:
    """One table; the sections' titles are rows of it."""
    head = ("row", *outcome.stacks, "CPU", "must", "aim", "")
    rows: list[Sequence[str]] = []
    for title, lines in outcome.sections.items():
        shown = [line for line in lines if not line.detail]
        if shown:
            rows.append((f"**{title}**", *[""] * (len(head) - 1)))
            rows += [_row(line, outcome.stacks) for line in shown]
    return _table(head, rows)


def _row(line: Line, stacks: Sequence[str]) -> Sequence[str]:
    bounds = [bound(value, at_least=line.at_least) for value in (line.must, line.aim)]
    return (line.name, *_cells(line, stacks), _cpu(line, stacks), *bounds, line.note or verdicts(line, stacks))


def verdicts(line: Line, stacks: Sequence[str]) -> str:
    """The verdict, with the stack where that is another one than usual, and those of other stacks that differ."""
    if not line.verdict:
        return ""
    where = [f"on {line.judged}"] if line.judged in stacks and line.judged != judged(stacks) else []
    others = [f"{stack}: {said}" for stack in line.values if (said := line.verdict_on(stack)) != line.verdict]
    return f"{line.verdict} ({', '.join([*where, *others])})" if where or others else line.verdict


def _cells(line: Line, stacks: Sequence[str]) -> list[str]:
    if line.values.keys() == {ALONE}:
        return [_cell(line, line.values[ALONE]), *["="] * (len(stacks) - 1)]
    return [_cell(line, line.values[stack]) if stack in line.values else "" for stack in stacks]


def _cell(line: Line, value: Value) -> str:
    if value.pair is None:
        return f"{digits(value.value)} {line.unit}"
    ours, against = (digits(seconds * 1000) for seconds in (value.pair.ours, value.pair.against))
    return f"{ours} / {against} = {digits(value.value)} ({digits(value.pair.low)} - {digits(value.pair.high)})"


def _cpu(line: Line, stacks: Sequence[str]) -> str:
    pairs = [value.pair for stack in (ALONE, *stacks) if (value := line.values.get(stack)) is not None]
    return ", ".join("-" if pair.cpu is None else digits(pair.cpu) for pair in pairs if pair is not None)


def bound(value: float | None, *, at_least: bool) -> str:
    """What is asked for, in words of a table."""
    return "" if value is None else f"{'>=' if at_least else '<='} {value:.3g}"


def digits(value: float) -> str:
    """Three that count, fewer for small ones."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _details(outcome: Outcome) -> str:
    lines = [line for found in outcome.sections.values() for line in found if line.detail]
    rows = [(line.name, *_cells(line, outcome.stacks), _cpu(line, outcome.stacks)) for line in lines]
    return _table(("more", *outcome.stacks, "CPU"), rows)


def _subjects(samples: Samples) -> str:
    rows = []
    for name, taken in samples.taken.items():
        wall = summary([sample.wall * 1000 for sample in taken])
        cpu = [sample.cpu * 1000 for sample in taken if sample.cpu is not None]
        cells = [digits(wall[key]) for key in ("median", "mad", "min", "max")]
        rows.append((name, *cells, digits(statistics.median(cpu)) if cpu else "", f"{wall['n']:g}"))
    return _table(("measured", "median ms", "MAD", "min", "max", "CPU ms", "n"), rows)


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


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = list(rows)
    if not body:
        return ""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))
