"""shim/cgroups.py on this host's own hierarchies, under a child of the test's own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import cgroups
from shim.cgroups import Cgroup
from shim.errors import HakoError
from shim.process import Child, Confinement, spawn

PARENT = f"/hako-test-{os.getpid()}"


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    """A container's cgroup, made, in every hierarchy of this host."""
    group = Cgroup.for_container(f"{PARENT}/c1", "c1")
    group.create()
    yield group
    group.remove()
    assert not any(os.path.exists(os.path.dirname(path)) for path in group.dirs)


@pytest.fixture
def sleeper() -> Iterator[Child]:
    """A process to put somewhere."""
    child = spawn(["/bin/sleep", "60"], confine=Confinement())
    yield child
    child.terminate(0)
    child.close()


def _file(group: Cgroup, name: str) -> Path | None:
    return next((Path(path, name) for path in group.dirs if Path(path, name).exists()), None)


def test_the_parents_that_will_be_made_are_known_before(cgroup: Cgroup) -> None:
    """So that they can be written down first: none that is there, the deepest first."""
    deeper = Cgroup.for_container(f"{PARENT}/a/b/c2", "c2")
    missing = deeper.missing_parents()
    assert missing[0].endswith(f"{PARENT}/a/b") and missing[1] == os.path.dirname(missing[0])
    assert len(missing) == 2 * len(deeper.dirs) and not any(path.endswith(PARENT) for path in missing)
    deeper.create()
    assert deeper.missing_parents() == []
    for path in deeper.dirs:
        os.rmdir(path)
    cgroups.remove_empty(missing)
    assert not any(os.path.exists(path) for path in missing)
    assert cgroup.missing_parents() == []


def test_process_is_in_every_hierarchy(cgroup: Cgroup, sleeper: Child) -> None:
    """add() moves a process in all hierarchies, cpuset of version 1 included."""
    cgroup.add(sleeper.pid)
    lines = Path(f"/proc/{sleeper.pid}/cgroup").read_text().splitlines()
    assert len(cgroup.dirs) >= 1
    assert sum(line.endswith(f":{PARENT}/c1") for line in lines) == len(cgroup.dirs)


def test_limits_are_written(cgroup: Cgroup) -> None:
    """Memory, CPU and pids limits arrive in the files, and can be raised and lowered in any order with
    swap.
    """
    for limit in (64 << 20, 256 << 20, 32 << 20):
        resources = {"memory": {"limit": limit, "swap": limit}, "pids": {"limit": 7}, "cpu": {"shares": 512}}
        problems = cgroup.apply(resources)
        written = _file(cgroup, "memory.limit_in_bytes") or _file(cgroup, "memory.max")
        if written is None:
            pytest.skip("this host has no memory controller")
        assert written.read_text().strip() == str(limit), problems
    pids = _file(cgroup, "pids.max")
    assert pids is not None
    assert pids.read_text().strip() == "7"


def test_missing_controller_is_told_not_raised(cgroup: Cgroup) -> None:
    """A limit that the host cannot hold is reported in words; a key cannot leave the cgroup's directory."""
    problems = cgroup.apply({"cpu": {"cpus": "9999"}, "unified": {"../x": "1"}})
    assert any(problem.startswith("cpuset.cpus=9999: ") for problem in problems)


def test_removal_waits_for_the_last_process(cgroup: Cgroup, sleeper: Child) -> None:
    """A process that is being killed does not make remove() fail."""
    cgroup.add(sleeper.pid)
    sleeper.signal(9)
    cgroup.remove()
    assert not any(os.path.exists(path) for path in cgroup.dirs)
    cgroup.remove()


def test_removal_is_bounded(cgroup: Cgroup, sleeper: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stays in the cgroup is an error after the deadline, and is not killed."""
    monkeypatch.setattr(cgroups, "REMOVE_DEADLINE", 0.1)
    cgroup.add(sleeper.pid)
    start = time.monotonic()
    with pytest.raises(HakoError, match="still in use"):
        cgroup.remove()
    assert time.monotonic() - start < 2
    assert sleeper.poll() is None
    sleeper.terminate(0)


def test_others_directories_stay(cgroup: Cgroup) -> None:
    """A parent that was there before, or has other children, outlives the cgroup."""
    other = Cgroup(f"{PARENT}/c2")
    other.create()
    other.remove()
    assert all(os.path.isdir(os.path.dirname(path)) for path in cgroup.dirs)
    assert not any(os.path.exists(path) for path in other.dirs)


def test_shim_joins_a_cgroup_by_path(sleeper: Child) -> None:
    """containerd's ShimCgroup option names a path; it is made and joined in every hierarchy."""
    cgroups.join_everywhere(f"{PARENT}-shim", sleeper.pid)
    assert f":{PARENT}-shim" in Path(f"/proc/{sleeper.pid}/cgroup").read_text()
    sleeper.terminate(0)
    Cgroup(f"{PARENT}-shim").remove()
