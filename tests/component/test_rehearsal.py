"""The container that is made beside a clone's agent: when it runs, what is left of it, and what its failure costs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from agent import rehearsal, samplespec, spans
from agent.container import container
from tests.framework.box import Guest
from tests.framework.inguest import in_guest, need_root

pytestmark = [need_root]

CGROUP = Path("/sys/fs/cgroup" + rehearsal.CGROUP)
SECONDS = 20.0
GIVEN_UP = 1 << 8
"""how a process that stands by ends when nobody is left to tell it what to become"""


def prepared() -> None:
    """As the agent is before it forks; without limits, for which this host's cgroup v2 may have no controllers."""
    container.prepare()
    spans.forget()
    whole = samplespec.spec_of

    def spec_of(rootfs: str) -> dict[str, Any]:
        spec = whole(rootfs)
        del spec["linux"]["resources"]
        return spec

    samplespec.spec_of = spec_of


def broken(rootfs: str) -> dict[str, Any]:
    """In place of the spec."""
    raise OSError(rootfs)


def state() -> tuple[object, ...]:
    """What it could leave: mounts, files, cgroups, the names, processes."""
    return (
        Path("/proc/self/mountinfo").read_text(),
        [path for path in (rehearsal.HOME, samplespec.SHM) if os.path.exists(path)],
        sorted(path.name for path in CGROUP.parent.iterdir() if path.is_dir()),
        os.uname().nodename,
        os.readlink("/proc/self/ns/uts"),
        os.sched_getscheduler(0),
        sorted(os.sched_getaffinity(0)),
        sorted(name for name in os.listdir("/proc") if name.isdigit()),
    )


def reaped(count: int = 1) -> list[int]:
    """Exit statuses of so many children."""
    deadline, found = time.monotonic() + SECONDS, list[int]()
    while len(found) < count:
        assert time.monotonic() < deadline, f"{count - len(found)} children do not end"
        pid, status = os.waitpid(-1, os.WNOHANG)
        found += [status] if pid else []
        time.sleep(0.01)
    return found


def test_it_goes_through_a_container_and_leaves_nothing() -> None:
    """Prepared before, run at the word; its span is told once."""

    def body(_guest: Guest) -> list[tuple[object, object]]:
        prepared()
        before = state()
        rehearsal.begin()
        assert spans.all() == []
        assert len((CGROUP / "cgroup.procs").read_text().split()) == 1, "the one that stands by"
        began = time.monotonic_ns()
        rehearsal.go()
        assert reaped() == [0]
        (span,) = spans.all()
        assert span[:2] == ("rehearsal", "")
        assert began <= span[2] < span[3] <= time.monotonic_ns()
        assert spans.all() == [span]
        return [pair for pair in zip(before, state(), strict=True) if pair[0] != pair[1]]

    assert in_guest(body, cgroups=True) == []


def test_it_ends_with_the_agent() -> None:
    """One that waits for its word when there is no agent any more."""

    def body(_guest: Guest) -> tuple[list[int], bool]:
        prepared()
        rehearsal.begin()
        rehearsal._child.pop().close()
        return sorted(reaped(2)), rehearsal.span() is None

    assert in_guest(body, cgroups=True) == ([0, GIVEN_UP], True)


def test_one_that_was_killed() -> None:
    """The agent's word reaches nobody, and there is nothing to tell."""

    def body(_guest: Guest) -> bool:
        prepared()
        rehearsal.begin()
        pid, _standby = sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) > 1)
        os.kill(pid, 9)
        assert sorted(reaped(2)) == [9, GIVEN_UP]
        rehearsal.go()
        return rehearsal.span() is None

    assert in_guest(body, cgroups=True)


def test_without_it_the_agent_goes_on() -> None:
    """What goes wrong with it is nobody's but its own."""

    def body(_guest: Guest) -> tuple[list[int], bool, bool]:
        prepared()
        samplespec.spec_of = broken
        before = state()
        rehearsal.begin()
        statuses = reaped()
        rehearsal.go()
        return statuses, rehearsal.span() is None, state() == before

    assert in_guest(body, cgroups=True) == ([0], True, True)


def test_where_there_is_none() -> None:
    """Nothing happens."""
    rehearsal.go()
    assert rehearsal.span() is None
