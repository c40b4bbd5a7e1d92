"""What a user of `make` sees: the steps, one line each, with the time they took.

Owns: those lines. On a terminal the step that is going on is shown too; in a log only what is done.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

BLINK = 1.5  # seconds: a step that took less had nothing to do but to look
SOON = 5.0  # seconds
WIDTH = 28
Result = TypeVar("Result")


def step(name: str, action: Callable[[], Result], long: str = "") -> Result:
    """Do it and say how long it took, unless that was a blink; `long` is said of one that is not over soon."""
    begin = time.monotonic()
    timer = threading.Timer(SOON, print, [f"{name}: {long}"], {"flush": True})
    if long:
        timer.start()
    if sys.stdout.isatty():
        print(f"{name} ...", end="", flush=True)
    try:
        result = action()
    finally:
        timer.cancel()
        if sys.stdout.isatty():
            print("\r\x1b[K", end="", flush=True)
    took = time.monotonic() - begin
    if took >= BLINK:
        line(name, took)
    return result


def line(name: str, seconds: float) -> None:
    """One line of the list."""
    print(f"{name:<{WIDTH}} {seconds:6.1f} s", flush=True)
