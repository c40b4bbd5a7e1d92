"""The clocks: wall time of one run of a command or a call, and the processor time of everything that it set to work.

Owns: reaping. Engines' shims leave their caller and go on for a moment after a command has ended. The bench adopts
them (PR_SET_CHILD_SUBREAPER), waits for them after each run, so that no run disturbs the next one, and counts them.
Knows nothing of rows or engines. Called by `rows` and by the subjects.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from agent.linux import syscalls
from agent.ttrpc.status import RpcError
from shim.errors import HakoError

T = TypeVar("T")
PR_SET_CHILD_SUBREAPER = 36
SETTLE = 30.0  # seconds for what a command left running to end by itself
LINGER = 0.002
WAITING = "containerd-shim-hako-v2 pool"
"""the command line of the process of a VM in hako's pool; an orphan by design"""
TICKS = os.sysconf("SC_CLK_TCK")


class Sample(NamedTuple):
    """One run: wall seconds to the moment that counts, processor seconds until all that it started had ended (or None)."""

    wall: float
    cpu: float | None


class RunFailed(RuntimeError):
    """A measured command did not do what it is measured for; its words are in the message."""


FAILURES = (RunFailed, HakoError, RpcError, OSError, RuntimeError, AssertionError, subprocess.SubprocessError)
"""What may go wrong with one thing that is measured while the others go on."""


def adopt_orphans() -> None:
    """From now on, descendants whose parent ends become our children, and their processor time ours when reaped."""
    syscalls.prctl(PR_SET_CHILD_SUBREAPER, 1)


def measured(run: Callable[[], T]) -> tuple[T, float]:
    """What `run` returns, and processor seconds until all that it started has ended, which is waited for. Raises RunFailed."""
    before, known = processor_seconds(), children()
    told = run()
    settle(known)
    return told, processor_seconds() - before


# --- runs -------------------------------------------------------------------------------------------------


def whole(argv: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 60, cwd: str | None = None) -> float:
    """Seconds from spawn to exit of `argv`, which must succeed."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            argv, env=env, cwd=cwd, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise RunFailed(f"{' '.join(argv)}: not over after {timeout:g} s") from exc
    wall = time.perf_counter() - start
    if done.returncode:
        raise RunFailed(f"{' '.join(argv)} -> {done.returncode}: {done.stderr.decode(errors='replace')[-800:]}")
    return wall


def first_byte(argv: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 60) -> float:
    """Seconds from spawn of `argv` to the first byte on its stdout; then it is waited for."""
    return both(argv, env, timeout)[0]


def both(argv: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 60) -> tuple[float, float]:
    """Seconds from spawn of `argv` to the first byte on its stdout, and to its exit. Raises RunFailed."""
    start = time.perf_counter()
    with subprocess.Popen(
        argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        if not readable(child.stdout.fileno(), timeout) or not os.read(child.stdout.fileno(), 1):
            child.kill()
            raise RunFailed(f"{' '.join(argv)}: no output: {child.stderr.read().decode(errors='replace')[-800:]}")
        first = time.perf_counter() - start
        try:
            _, said = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as exc:
            child.kill()
            raise RunFailed(f"{' '.join(argv)}: not over {timeout:g} s after its first output") from exc
        over = time.perf_counter() - start
    if child.returncode:
        raise RunFailed(f"{' '.join(argv)} -> {child.returncode}: {said.decode(errors='replace')[-800:]}")
    return first, over


def called(action: Callable[[], object]) -> float:
    """Seconds that `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def readable(fd: int, timeout: float) -> bool:
    """Whether there is something to read, or the end, within `timeout` seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(timeout * 1000))


# --- processes --------------------------------------------------------------------------------------------


def parents() -> dict[int, int]:
    """Every process of the machine -> its parent."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _stat(int(name))
            if fields:
                found[int(name)] = int(fields[1])
    return found


def children() -> set[int]:
    """Our children, with those that we adopted."""
    return {pid for pid, parent in parents().items() if parent == os.getpid()}


def tree(root: int) -> set[int]:
    """A process and all its descendants."""
    table = parents()
    found = {root}
    while more := {pid for pid, parent in table.items() if parent in found} - found:
        found |= more
    return found


def settle(known: Iterable[int], timeout: float = SETTLE) -> None:
    """Reap our children but for `known` ones and VMs that wait for a pod. Raises RunFailed if one goes on; it is killed then."""
    deadline = time.monotonic() + timeout
    kept = set(known)
    while left := {pid for pid in children() - kept if not command(pid).startswith(WAITING)}:
        for pid in left:
            _reap(pid)
        if time.monotonic() > deadline:
            said = ", ".join(f"{pid} {command(pid)}" for pid in left)
            kill(left)
            raise RunFailed(f"still there {timeout:g} s after the run: {said}")
        time.sleep(LINGER)


def kill(pids: Iterable[int]) -> None:
    """End processes that are ours, hard."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        _reap(pid)


def command(pid: int) -> str:
    """The command line of a process, "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:120]
    except OSError:
        return ""


def processor_seconds() -> float:
    """User and system time of all that we started, ended or not, without our own."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime + busy(tree(os.getpid()) - {os.getpid()})


def busy(pids: Iterable[int]) -> float:
    """Processor seconds of living processes, and of what they have reaped (that in clock ticks)."""
    return sum(_busy(pid) for pid in pids)


def pss(pid: int) -> int:
    """Proportional set size of a process in bytes; 0 if it has ended."""
    return _rollup(pid, "Pss:")


def rss(pid: int) -> int:
    """Resident set size of a process in bytes; 0 if it has ended."""
    return _rollup(pid, "Rss:")


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def _busy(pid: int) -> float:
    fields = _stat(pid)
    if not fields:
        return 0.0
    try:
        # The processor time of another process in nanoseconds, as clock_getcpuclockid(3) makes the number.
        own = time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0
    return own + (int(fields[13]) + int(fields[14])) / TICKS


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (0: state, 1: parent, 13 and 14: cutime and cstime)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _rollup(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)
