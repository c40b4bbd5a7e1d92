"""The clock of an emulated guest: how fast its time stamp counter runs, and whether a guest that rested kept time.

Owns: the measurement of the counter, the lines between which a guest of a template rests. Must not know: QEMU's process.
Called by qemu/driver.py.

TCG's guests read the host's own counter (QEMU: cpu_get_ticks), so the host knows its frequency better than they do: a
guest compares it with an emulated timer while it boots, and is wrong when the host lets it wait in the middle (seen:
by 2.8 times, which a template then hands on to all of its clones). Linux takes the frequency from tsc_early_khz=, and
corrects it later by 1 % at most (arch/x86/kernel/tsc.c).
"""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, Final

from shim import answers

if TYPE_CHECKING:
    from collections.abc import Callable

MEASURED_SECONDS: Final = 0.03
TRIES: Final = 8
STEP_KHZ: Final = 1000
"""what is told is rounded to this, so that two boots of one host agree; less than 0.03 % from 2 GHz on"""
CODE: Final = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"  # rdtsc; shl rdx, 32; or rax, rdx; ret
REST: Final = "hako-agent: rests "
"""and then milliseconds: on the console of a guest that is to be saved, before it does nothing for that long"""
FASTEST, SLOWEST = 1.25, 0.5
"""a guest's clock over ours; a busy host delays what the guest says, so that only gross errors are told apart"""


@cache
def counter_khz() -> int:
    """Of this host's time stamp counter, rounded to STEP_KHZ; 0 where it cannot be told. 30 ms once a boot of the host."""
    return int(answers.cached("tsc", [answers.boot()], lambda: str(_measured()))[0] or 0)


def _measured() -> int:
    import ctypes
    import mmap

    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # SELinux, PaX: no memory is both written and executed
        return 0
    page.write(CODE)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    began, first = _reading(read)
    time.sleep(MEASURED_SECONDS)
    ended, last = _reading(read)
    return round((last - first) * 1e6 / (ended - began) / STEP_KHZ) * STEP_KHZ


def _reading(read: Callable[[], int]) -> tuple[int, int]:
    """Nanoseconds and the counter, read together: of several tries the one that was interrupted least."""

    def attempt() -> tuple[int, int, int]:
        before = read()
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        after = read()
        return after - before, now, (before + after) // 2

    _, now, counter = min(attempt() for _ in range(TRIES))
    return now, counter


class Rest:
    """A guest's rest as it comes over its console, line by line."""

    def __init__(self) -> None:
        self._began = 0.0
        self._milliseconds = 0
        self._seconds = 0.0

    def begins(self, line: str) -> None:
        """It has said so, just now; any other line is none of ours."""
        _, found, after = line.partition(REST)
        if found and after.strip().isdecimal():
            self._began, self._milliseconds = time.monotonic(), int(after)

    def ends(self) -> None:
        """It has said the next thing, just now."""
        self._seconds = time.monotonic() - self._began

    def refusal(self) -> str:
        """What is wrong with its clock; "" if that is right, or was not to be told."""
        if not self._milliseconds:
            return ""
        slept = self._milliseconds / 1000
        if slept / FASTEST <= self._seconds <= slept / SLOWEST:
            return ""
        return f"the guest's clock is wrong: its {slept:g} s were {self._seconds:.2f} s"
