"""A script of checks that runs as /init of a test guest, one console line for each; and what a test reads of its file.

Owns: the lines (bareguest.Run has them as results), what is expected, the guest's end. Must not know: what is checked.
Used inside the guest by tests/vm/{guest,container}_checks.py, outside by the tests that boot them.
"""

from __future__ import annotations

import os
import sys
import time
import traceback

from agent import init
from agent.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

PREFIX = "check_"


class NotHere(Exception):
    """This kernel cannot; the reason."""


def expect(got: object, wanted: object) -> None:
    """Equality with both sides in the message."""
    if got != wanted:
        raise AssertionError(f"{got!r} is not {wanted!r}")


def names(script: Path) -> list[str]:
    """The checks of a script, read without importing it."""
    lines = script.read_text().splitlines()
    return [line.removeprefix(f"def {PREFIX}").partition("(")[0] for line in lines if line.startswith(f"def {PREFIX}")]


def run_all(script: Mapping[str, object], first: Callable[[], None] | None = None) -> None:
    """PID 1: set up, each check of a script's globals, power off. `first` is a check for the kernel's first root, before that."""
    try:
        if first is not None and os.stat("/").st_dev == os.stat("/usr").st_dev and os.access("/", os.W_OK):
            _run(first.__name__, first)
        init.setup()
        print(f"CHECK setup ok {time.clock_gettime(time.CLOCK_BOOTTIME):.3f}", flush=True)
        skipped = procfs.kernel_parameters().get("checks.skip", "").split(",")
        for name, check in list(script.items()):  # a check may import
            if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in skipped and callable(check):
                _run(name.removeprefix(PREFIX), check)
    except BaseException:  # noqa: BLE001 - PID 1 has nobody to raise to
        traceback.print_exc()
        sys.stdout.flush()
    init.poweroff()


def _run(name: str, check: Callable[[], None]) -> None:
    """One check, one line; all else that it prints stays on the console too."""
    try:
        check()
    except NotHere as reason:
        print(f"CHECK {name} skip {reason}", flush=True)
    except Exception as error:  # noqa: BLE001 - the line is the result
        traceback.print_exc()
        print(f"CHECK {name} FAIL {type(error).__name__}: {error}".replace("\n", " "), flush=True)
    else:
        print(f"CHECK {name} ok -", flush=True)
