"""The command: `python -m tests.bench [--rounds N] [--only PATTERN] [--pods N] [--out DIR]`.

Owns: options, order (interleaved groups, then pool, memory, scale), files. As root, on a machine that is not busy.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import sys
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

from shim.errors import HakoError
from tests.bench import catalogue, footprint, machine, pool, scale
from tests.bench.lab import COLD, TEMPLATE, Lab
from tests.bench.measure import adopt_orphans
from tests.bench.plot import svg
from tests.bench.report import Outcome, as_json, as_markdown
from tests.bench.rows import Figure, Samples, Subject, interleave, results
from tests.framework.containerd import short_directory

INTERRUPTED = 130
SCALE_STARTS = 10


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
            outcome = measure(Lab(directory, undo), options)
            say("taking everything down")
    except KeyboardInterrupt:
        say("interrupted; everything was taken down")
        return INTERRUPTED
    except HakoError as exc:
        say(str(exc))
        return 1
    write(outcome, Path(options.out))
    return 1 if outcome.samples.failed else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure hako beside runc and a bare boot.")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each subject (default 15)")
    groups = f"groups: a regular expression on {', '.join(catalogue.ALL)}"
    parser.add_argument("--only", default="", metavar="PATTERN", help=groups)
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
    lab.make_templates()
    samples, figures = Samples(), list[Figure]()
    groups = catalogue.chosen(options.groups)
    subjects: list[Subject] = []
    for group in groups:
        subjects += group.open(lab)
        say(f"{group.name} is set up")
    interleave(subjects, options.rounds, samples, say)
    rows = [row for group in groups for row in group.rows]
    if catalogue.POOL in options.groups:
        say("pool")
        pool.measure(lab, samples, options.rounds)
        rows += pool.ROWS
    if catalogue.MEMORY in options.groups:
        say("memory")
        figures += footprint.figures(lab)
    if catalogue.SCALE in options.groups:
        say(f"scale, {options.pods} pods")
        figures += scale.measure(lab, samples, options.pods, min(options.rounds, SCALE_STARTS))
        rows += scale.rows(options.pods)
    shown = {mode: lab.traces[mode] for mode in (COLD, TEMPLATE) if mode in lab.traces}
    return Outcome(options.command, described, samples, results(rows, samples), figures, shown, lab.missing)


def write(outcome: Outcome, directory: Path) -> None:
    """The files, and the tables on stdout."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())
    text = as_markdown(outcome)
    samples = {name: outcome.samples.wall(name) for name in outcome.samples.taken}
    title = f"{outcome.machine['date']}, {outcome.machine['processor']}, QEMU {outcome.machine['QEMU']}"
    contents = {
        "json": json.dumps(as_json(outcome), indent=1), "md": text, "svg": svg(samples, title),
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
