"""Time one run of a command from outside: to its end, or to the first byte of its output.

Owns: clocks and the reaping of what it starts. Knows nothing of rows or engines. Called by `rows`.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Sample(NamedTuple):
    """One run: wall seconds to the moment that counts."""

    wall: float


class RunFailed(RuntimeError):
    """A measured command did not do what it is measured for; its words are in the message."""


def whole(argv: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 60) -> Sample:
    """Seconds from spawn to exit of `argv`, which must succeed."""
    start = time.perf_counter()
    done = subprocess.run(argv, env=env, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False)
    wall = time.perf_counter() - start
    if done.returncode:
        raise RunFailed(f"{' '.join(argv)} -> {done.returncode}: {done.stderr.decode(errors='replace')[-800:]}")
    return Sample(wall)


def first_byte(argv: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 60) -> Sample:
    """Seconds from spawn of `argv` to the first byte on its stdout; then it is left to end by itself."""
    start = time.perf_counter()
    with subprocess.Popen(
        argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        if not _readable(child.stdout.fileno(), timeout) or not os.read(child.stdout.fileno(), 1):
            child.kill()
            raise RunFailed(f"{' '.join(argv)}: no output: {child.stderr.read().decode(errors='replace')[-800:]}")
        wall = time.perf_counter() - start
        child.communicate(timeout=timeout)
    return Sample(wall)


def called(action: Callable[[], object]) -> Sample:
    """Seconds that `action` takes."""
    start = time.perf_counter()
    action()
    return Sample(time.perf_counter() - start)


def _readable(fd: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(timeout * 1000))


def pss_kib(pids: Sequence[int]) -> dict[int, int]:
    """Proportional set size of each process in KiB, from /proc/PID/smaps_rollup."""
    found = {}
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            found[pid] = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return found
