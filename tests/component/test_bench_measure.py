"""The bench's clocks with real processes: what a command leaves running is waited for and counted (tests/bench/measure.py)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from agent.linux import syscalls
from tests.bench import measure

BUSY = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


@pytest.fixture(autouse=True)
def adopting() -> Iterator[None]:
    """Orphans of this test are its process's."""
    measure.adopt_orphans()
    yield
    syscalls.prctl(measure.PR_SET_CHILD_SUBREAPER, 0)


def test_what_a_command_leaves_behind_is_waited_for_and_counted() -> None:
    """The command ends at once; its orphan works for 0.3 s of processor time."""
    argv = ["/bin/sh", "-c", f"{sys.executable} -c '{BUSY}' >/dev/null 2>&1 &"]
    wall, cpu = measure.measured(lambda: measure.whole(argv))
    assert 0.25 < cpu < 3
    assert wall < 0.25


def test_what_does_not_end_is_ended_and_told() -> None:
    """A run whose orphan stays is no sample."""
    known = measure.children()
    measure.whole(["/bin/sh", "-c", "sleep 1234 >/dev/null 2>&1 &"])
    with pytest.raises(measure.RunFailed, match="sleep 1234"):
        measure.settle(known, timeout=0.3)
    measure.settle(known, timeout=10)
    assert measure.children() == known


def test_first_byte_and_end_are_told_apart() -> None:
    """From the start of the command to each."""
    first, over = measure.both(["/bin/sh", "-c", "echo x; sleep 0.3"])
    assert first < over - 0.2


def test_a_command_that_fails_is_no_sample() -> None:
    """Its words are in the error."""
    with pytest.raises(measure.RunFailed, match="-> 3: broken"):
        measure.whole(["/bin/sh", "-c", "echo broken >&2; exit 3"])


def test_processor_time_of_a_living_process() -> None:
    """In a resolution that ticks do not have."""
    before = measure.busy([os.getpid()])
    sum(range(100_000))
    assert 0 < measure.busy([os.getpid()]) - before < 5
