"""The command: `python -m tests.bench [--rounds N] [--only PATTERN] [--stack WORD] [--pods N] [--out DIR]`.

Owns: options, order (interleaved groups, then memory, scale), files. As root, on a machine that is not busy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import signal
import sys
import time
import traceback
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from shim.errors import HakoError
from tests.bench import catalogue, footprint, machine, scale
from tests.bench.lab import Lab
from tests.bench.measure import FAILURES, adopt_orphans
from tests.bench.plot import starts
from tests.bench.report import Outcome, as_json, as_markdown
from tests.bench.rows import Figure, Line, lines, of_figures
from tests.bench.stacks import on
from tests.bench.subjects import Samples, Subject, interleave
from tests.framework.containerd import short_directory

INTERRUPTED = 130


def apart(arguments: list[str]) -> int:
    """`main` in a process group of its own: a terminal's ^C reaches us, not containerd and QEMU, and is passed on."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        status = 1
        try:
            status = main(arguments)
        except SystemExit as exc:
            status = exc.code if isinstance(exc.code, int) else 1
        except BaseException:  # noqa: BLE001 - a forked child must not return into the parent's code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGINT))
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended)


def main(arguments: list[str]) -> int:
    """Measure, write, print."""
    options = parse(arguments)
    if os.geteuid() != 0:
        say("the bench needs root: containerd, QEMU, namespaces")
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background job starts with it ignored
        signal.signal(number, signal.default_int_handler)
    adopt_orphans()
    try:
        with short_directory() as directory, ExitStack() as undo:
            outcome = measure(Lab(directory, undo, options.stack), options)
            write(outcome, Path(options.out))
            say("taking everything down")
    except KeyboardInterrupt:
        say("interrupted; everything was taken down")
        return INTERRUPTED
    except HakoError as exc:
        say(str(exc))
        return 1
    return 1 if outcome.samples.failed else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure hako beside its peers and bare floors.")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each subject (default 15)")
    groups = f"groups: a regular expression on {', '.join(catalogue.ALL)}; those that they refer to are measured too"
    parser.add_argument("--only", default="", metavar="PATTERN", help=groups)
    parser.add_argument("--stack", default="", metavar="WORD", help="only the stack whose name has this in it (default: all)")
    parser.add_argument("--pods", type=int, default=30, help="live pods of the group scale (default 30)")
    parser.add_argument("--out", default="build/bench", metavar="DIR", help="where DATE.json, .md and .svg go")
    options = parser.parse_args(arguments)
    options.groups = [name for name in catalogue.ALL if re.search(options.only, name)]
    if not options.groups:
        parser.error(f"--only {options.only}: no such group; there are {', '.join(catalogue.ALL)}")
    options.command = shlex.join(["python", "-m", "tests.bench", *arguments])
    return options


def measure(lab: Lab, options: argparse.Namespace) -> Outcome:
    """All chosen groups."""
    described = machine.describe(lab)
    say("; ".join(f"{name}: {value}" for name, value in described.items()))
    samples = Samples()
    groups = catalogue.chosen(options.groups)
    subjects: list[Subject] = []
    for group in groups:
        subjects += group.open(lab, partial(failed, samples))
        say(f"{group.name} is set up")
    interleave(subjects, options.rounds, samples, say)
    names = [stack.name for stack in lab.stacks]
    by_group = {group.name: lines(group.rows, samples, names) for group in groups}
    by_group |= afterwards(lab, options, samples)
    sections = {
        title: [line for name in parts for line in by_group.get(name, [])] for title, parts in catalogue.SECTIONS.items()
    }
    return Outcome(options.command, described, names, samples, sections, lab.traces, lab.missing)


def afterwards(lab: Lab, options: argparse.Namespace, samples: Samples) -> dict[str, list[Line]]:
    """The groups that are not interleaved, on each stack."""
    ways = {
        catalogue.MEMORY: partial(footprint.figures, lab),
        catalogue.SCALE: partial(scale.figures, lab, samples, options.pods, options.rounds),
    }
    figures: dict[str, list[Figure]] = {name: [] for name in ways if name in options.groups}
    for name, stack in itertools.product(figures, lab.stacks):
        say(f"{name} on {stack.name}")
        try:
            figures[name] += ways[name](stack)
        except FAILURES as exc:
            failed(samples, on(f"group {name}", stack), str(exc))
    rows = lines(scale.rows(options.pods), samples, [stack.name for stack in lab.stacks])
    more = {catalogue.MEMORY: [footprint.private_memory()], catalogue.SCALE: rows}
    return {name: [*of_figures(figures[name]), *more[name]] for name in figures}


def failed(samples: Samples, name: str, reason: str) -> None:
    """Something could not be measured."""
    samples.fail([name], reason)
    say(f"FAILED {name}: {reason}")


def write(outcome: Outcome, directory: Path) -> None:
    """The files, and the tables on stdout."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())
    text = as_markdown(outcome)
    contents = {
        "json": json.dumps(as_json(outcome), indent=1), "md": text,
        "svg": starts(outcome.samples, outcome.stacks, f"{outcome.machine['date']}, {outcome.machine['processor']}"),
    }  # fmt: skip
    for suffix, content in contents.items():
        (directory / f"{stem}.{suffix}").write_text(content)
    print(text)
    say(f"written: {directory / stem}.json, .md, .svg")


def say(words: str) -> None:
    """To the one who waits; stdout has the tables alone."""
    print(f"bench: {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(apart(sys.argv[1:]))
