"""What guest code a restored VM runs for the first time: `python -m tests.bench.coldcode [--stack NAME] [--top N]`.

An emulated clone has translated nothing, so that a start costs what it touches, not what it repeats: about 5 us for each
piece of code (translation block). QEMU's own trace says when it translates which address; /proc/kallsyms and /proc/1/maps of
the same guest say what is there. The counts hardly depend on how busy the machine is, so that two versions can be compared
where times cannot (1 % from run to run for a whole start).

Owns: that measurement and its table. As root; one pod. `blocks` is pure.
"""

from __future__ import annotations

import argparse
import bisect
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from shim.hypervisor import base
from tests.bench import settings
from tests.bench.lab import Lab
from tests.bench.pod import PAUSE, Pod
from tests.bench.stacks import Stack
from tests.framework.containerd import short_directory

# QEMU's trace events: what it translates; commands that it is given; what a guest says on a virtio-serial port.
EVENTS = ("translate_block", "handle_qmp_command", "virtio_console_flush_buf")
LINE = re.compile(r"^\d+@(?P<time>[0-9.]+):(?P<event>\w+) (?P<rest>.*)$")
ADDRESS = re.compile(r"\bpc:0x([0-9a-f]+)")
RUN = '"execute": "cont"'
HELLO = re.compile(rf"in_len {len(base.HELLO) + 1},")
KERNEL = 1 << 63
SYMBOLS = "cat /proc/1/maps; echo =; cat /proc/kallsyms"
LOOKING = "looking"
DEADLINE = 60.0


class Block(NamedTuple):
    """A piece of code that was translated: seconds since the VM ran, its address."""

    at: float
    address: int


class Traced(NamedTuple):
    """`began`: when the VM ran, seconds of the host's clock; `hello`: how much later its agent said so."""

    began: float
    hello: float
    blocks: list[Block]


def blocks(lines: list[str]) -> Traced:
    """What a trace of a clone says, from the moment at which it runs. Raises ValueError for one that never did."""
    began, hello, found = 0.0, 0.0, []
    for line in lines:
        match = LINE.match(line)
        if match is None:
            continue
        now, event, rest = float(match["time"]), match["event"], match["rest"]
        if event == "handle_qmp_command" and RUN in rest:
            began = now
        elif began and event == "virtio_console_flush_buf" and HELLO.search(rest) and not hello:
            hello = now - began
        elif began and event == "translate_block" and (address := ADDRESS.search(rest)):
            found.append(Block(now - began, int(address[1], 16)))
    if not began:
        raise ValueError("the trace has no VM that runs")
    return Traced(began, hello, found)


class Names:
    """Of addresses, by /proc/kallsyms and /proc/PID/maps of the guest; libraries are looked up in the host's files."""

    def __init__(self, maps: str, kallsyms: str) -> None:
        words = [line.split() for line in kallsyms.splitlines()]
        self._kernel = sorted((int(word[0], 16), word[2]) for word in words if len(word) > 2 and word[1] in "tTwW")
        self._mapped: list[tuple[int, int, int, str]] = []
        for word in (line.split() for line in maps.splitlines()):
            if len(word) > 5 and "x" in word[1]:
                begin, end = (int(number, 16) for number in word[0].split("-"))
                self._mapped.append((begin, end, int(word[2], 16), word[5]))
        self._files: dict[str, tuple[list[tuple[int, str]], list[tuple[int, int, int]]]] = {}

    def of(self, address: int) -> tuple[str, str]:
        """(object, function); "?" for what is not known."""
        if address >= KERNEL:
            return "kernel", _nearest(self._kernel, address)
        for begin, end, offset, path in self._mapped:
            if begin <= address < end:
                return os.path.basename(path), self._in_file(path, address - begin + offset)
        return "other programs", "?"

    def _in_file(self, path: str, offset: int) -> str:
        if path not in self._files:
            self._files[path] = (_exported(path), _segments(path))
        symbols, segments = self._files[path]
        for start, address, size in segments:
            if start <= offset < start + size:
                return _nearest(symbols, offset - start + address)
        return "?"


def _nearest(symbols: list[tuple[int, str]], address: int) -> str:
    at = bisect.bisect_right(symbols, (address, "\U0010ffff")) - 1
    return symbols[at][1] if at >= 0 else "?"


def _exported(path: str) -> list[tuple[int, str]]:
    done = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=False, timeout=DEADLINE)
    words = [line.split() for line in done.stdout.splitlines()]
    return sorted((int(word[0], 16), word[2].partition("@")[0]) for word in words if len(word) == 3 and word[1] in "tTwWi")


def _segments(path: str) -> list[tuple[int, int, int]]:
    """(offset, address, size) of what is loaded."""
    done = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=False, timeout=DEADLINE)
    words = [line.split() for line in done.stdout.splitlines()]
    return [(int(word[1], 16), int(word[2], 16), int(word[4], 16)) for word in words if word and word[0] == "LOAD"]


class TracedPod(Pod):
    """A pod whose guest is looked into by a second container, which sees the guest's own /proc."""

    def symbols(self) -> Names:
        """What is where in its guest."""
        spec: dict[str, Any] = self._lab.spec(PAUSE, {}, "")
        linux, process = spec["linux"], spec["process"]
        linux["namespaces"] = [namespace for namespace in linux["namespaces"] if namespace["type"] != "pid"]
        linux["maskedPaths"] = []
        wanted = ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYSLOG"]
        process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), wanted)
        self.add(LOOKING, PAUSE, linux=linux, process=process)
        fifo, said = self.fifo("symbols"), []
        reader = threading.Thread(target=lambda: said.append(fifo.read_text(errors="replace")), daemon=True)
        reader.start()
        self.exec(LOOKING, "symbols", ["sh", "-c", SYMBOLS], stdout=str(fifo))
        reader.join(DEADLINE)
        maps, _, kallsyms = said[0].partition("\n=\n")
        return Names(maps, kallsyms)


def tracing(stack: Stack, directory: Path) -> tuple[Stack, Path]:
    """The stack with a QEMU that writes its trace when it waits for a saved VM, and where."""
    logs = directory / "trace"
    logs.mkdir()
    logs.chmod(0o777)  # QEMU runs as another user
    program = directory / "qemu"
    events = " ".join(f"-trace {event}" for event in EVENTS)
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *-incoming*) set -- "$@" -msg timestamp=on -D {logs}/%d {events};; esac\n'
        f'exec {stack.qemu} "$@"\n'
    )
    program.chmod(0o755)
    directory.chmod(0o755)
    return stack._replace(qemu=str(program)), logs


def measure(lab: Lab, stack: Stack) -> tuple[Traced, Names, list[tuple[str, float]]]:
    """One start; its phases' ends in seconds since the VM ran."""
    traced, logs = tracing(stack, lab.directory)
    lab.stacks.append(traced)
    pod = TracedPod(lab, settings.TEMPLATE, traced, several=True)
    with pod:
        pod.start()
        begin = time.time()
        created = pod.create()
        asked = time.time()
        pod.call("Start", id=pod.name)
        started = time.time()
        names = pod.symbols()
        (log,) = logs.iterdir()
        found = blocks(log.read_text(errors="replace").splitlines())
    ends = [("until the agent's hello", found.hello), ("until the sandbox is up", begin + created.ready - found.began)]
    ends += [("until the container is created", asked - found.began), ("until it runs", started - found.began)]
    return found, names, ends


def table(traced: Traced, names: Names, ends: list[tuple[str, float]], top: int) -> str:
    """Blocks of each phase, by object and by function."""
    lines, before = [], 0.0
    for phase, end in ends:
        there = [names.of(block.address) for block in traced.blocks if before <= block.at < end]
        objects = ", ".join(f"{name} {count}" for name, count in Counter(name for name, _ in there).most_common(6))
        lines.append(f"{phase}: {len(there)} blocks ({objects})")
        lines += [f"{count:8d}  {name}: {function}" for (name, function), count in Counter(there).most_common(top)]
        before = end
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.coldcode", description="What a clone translates.")
    parser.add_argument("--stack", default="", help="part of a stack's name; the newest without")
    parser.add_argument("--top", type=int, default=20, help="functions shown of each phase (default 20)")
    options = parser.parse_args(arguments)
    with short_directory() as directory, ExitStack() as undo:
        lab = Lab(directory, undo, options.stack)
        stack = lab.stacks[-1]
        print(f"{stack.described()}\n{table(*measure(lab, stack), options.top)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
