"""agent/cgroups on the host's cgroup v2 tree, in children made for the test (no controllers are needed)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.api import jsonmap, oci_pb2
from agent.cgroups import Cgroup, NullCgroup
from agent.errors import StepError
from agent.linux import cgroupfs


def _v2_root() -> str | None:
    with open("/proc/self/mounts") as mounts:
        for line in mounts:
            _, place, kind, options, *_ = line.split()
            if kind == "cgroup2" and "rw" in options.split(","):
                return place
    return None


@pytest.fixture
def root() -> Iterator[str]:
    """An own child of the host's v2 tree."""
    tree = _v2_root()
    if tree is None or os.geteuid() != 0:
        pytest.skip("needs root and a writable cgroup v2 mount")
    own = f"{tree}/hako-test-{os.getpid()}"
    os.mkdir(own)
    yield own
    for pid in cgroupfs.processes(own):
        os.kill(pid, signal.SIGKILL)
    cgroupfs.remove_tree(own, 5)


def resources(config: dict[str, Any]) -> oci_pb2.LinuxResources:
    """OCI JSON as the agent gets it."""
    filled = oci_pb2.LinuxResources()
    jsonmap.fill(filled, config)
    return filled


@pytest.fixture
def spawn() -> Iterator[Callable[..., int]]:
    """Make processes that are gone after the test: `spawn(function)` runs it in a child, default: sleep."""
    made: list[int] = []

    def start(function: Callable[[], None] = lambda: time.sleep(60)) -> int:
        pid = os.fork()
        if pid == 0:
            function()
            os._exit(0)
        made.append(pid)
        return pid

    yield start
    for pid in made:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def opening(cgroup: Cgroup, path: str, flags: int) -> int:
    """errno of opening `path` from inside the cgroup, 0 for success."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(reader, 1)
        try:
            os.open(path, flags)
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    cgroup.add(pid)
    os.write(writer, b"x")
    _, status = os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)
    return os.waitstatus_to_exitcode(status)


EVERYTHING = {"devices": [{"allow": True, "access": "rwm"}]}
NO_FULL = {"devices": [{"allow": False, "access": "rwm"}]}


@pytest.fixture
def log_node(tmp_path: Any) -> str:
    """A node of the kernel's log (1:11), which no container may open by default."""
    path = str(tmp_path / "log")
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 11))
    return path


def test_device_program_denies_and_allows(root: str, log_node: str) -> None:
    """The kernel refuses what no rule allows, and a replaced program holds at once."""
    cgroup = Cgroup("/devices", root)
    cgroup.create(resources(NO_FULL))
    assert opening(cgroup, "/dev/null", os.O_RDWR) == 0
    assert opening(cgroup, log_node, os.O_RDONLY) == 1  # EPERM
    cgroup.apply(resources(EVERYTHING))
    allowed = opening(cgroup, log_node, os.O_RDONLY)
    cgroup.apply(resources({"pids": {}}))
    unchanged = opening(cgroup, log_node, os.O_RDONLY)
    cgroup.apply(resources(NO_FULL))
    assert opening(cgroup, log_node, os.O_RDONLY) == 1
    cgroup.remove()
    assert (allowed, unchanged) == (0, 0)


def test_device_program_holds_in_children_of_the_cgroup(root: str, log_node: str) -> None:
    """A container cannot get rid of the program by making a cgroup below its own."""
    cgroup = Cgroup("/nesting", root)
    cgroup.create(resources(NO_FULL))
    os.mkdir(cgroup.directory + "/inner")
    inner = Cgroup("/nesting/inner", root)
    assert opening(inner, log_node, os.O_RDONLY) == 1
    cgroup.remove()


def test_freeze_stops_and_thaw_continues(root: str, spawn: Callable[..., int]) -> None:
    """A frozen process makes no progress."""
    reader, writer = os.pipe()

    def count() -> None:
        while True:
            os.write(writer, b"x")
            time.sleep(0.001)

    cgroup = Cgroup("/freezer", root)
    cgroup.create(None)
    cgroup.add(spawn(count))
    os.read(reader, 1)
    cgroup.freeze()
    os.write(writer, b"x")  # so that there is something to read away
    os.read(reader, 65536)
    os.set_blocking(reader, False)
    time.sleep(0.05)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    cgroup.thaw()
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b"x"
    cgroup.remove()


def test_kill_reaches_children_of_the_cgroup_and_frozen_ones(root: str, spawn: Callable[..., int]) -> None:
    """Every process below dies, also a frozen one, and remove() takes the whole tree with it."""
    cgroup = Cgroup("/pod/container", root)
    cgroup.create(None)
    os.makedirs(cgroup.directory + "/a/b")
    pids = [spawn() for _ in range(3)]
    cgroup.add(pids[0])
    for pid, below in zip(pids[1:], ("/a", "/a/b"), strict=True):
        cgroupfs.write(cgroup.directory + below, "cgroup.procs", str(pid))
    assert sorted(cgroup.pids()) == sorted(pids)
    cgroup.freeze()
    cgroup.remove()
    assert {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids} == {-signal.SIGKILL}
    assert not os.path.exists(cgroup.directory)
    assert not os.path.exists(root + "/pod")  # empty parents go too
    assert os.path.exists(root)
    cgroup.remove()
    assert cgroup.pids() == []


def test_kill_without_cgroup_kill(
    root: str, spawn: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On kernels before 5.14 each process is killed by itself."""
    cgroup = Cgroup("/old", root)
    cgroup.create(None)
    pid = spawn()
    cgroup.add(pid)
    real = cgroupfs.write

    def without_kill(directory: str, name: str, value: str) -> None:
        if name == "cgroup.kill":
            raise FileNotFoundError(2, "no such file", name)
        real(directory, name, value)

    monkeypatch.setattr(cgroupfs, "write", without_kill)
    cgroup.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    cgroup.remove()


def test_joining_a_container_that_split_its_cgroup(root: str, spawn: Callable[..., int]) -> None:
    """When processes are not allowed at the top any more, an exec goes where the container's process is."""
    if "hugetlb" not in cgroupfs.read(root, "cgroup.controllers").split():
        pytest.skip("no controller on this host's v2 tree to split a cgroup with")
    cgroup = Cgroup("/split", root)
    cgroup.create(None)
    os.mkdir(cgroup.directory + "/init")
    first, second = spawn(), spawn()
    cgroupfs.write(cgroup.directory + "/init", "cgroup.procs", str(first))
    cgroupfs.write(cgroup.directory, "cgroup.subtree_control", "+hugetlb")
    cgroup.add(second, beside=first)
    assert cgroupfs.processes_of(cgroup.directory + "/init") == [first, second]
    cgroup.remove()


def test_limits_reach_the_files_and_a_missing_controller_is_named(root: str) -> None:
    """cgroup.max.depth is there everywhere; memory.max is not on this tree, and the error says so."""
    cgroup = Cgroup("/limits", root)
    cgroup.create(resources({"unified": {"cgroup.max.depth": "2"}}))
    assert cgroupfs.read(cgroup.directory, "cgroup.max.depth") == "2"
    cgroup.remove()
    if "memory" not in cgroupfs.read(root, "cgroup.controllers").split():
        with pytest.raises(StepError, match=r"memory\.max"):
            cgroup.create(resources({"memory": {"limit": 1 << 20}}))
        assert not os.path.exists(cgroup.directory)


def test_an_occupied_cgroup_is_not_taken_over(root: str, spawn: Callable[..., int]) -> None:
    """Two containers never share a cgroup; an empty leftover is replaced."""
    first = Cgroup("/same", root)
    first.create(resources({"unified": {"cgroup.max.depth": "2"}}))
    second = Cgroup("/same", root)
    second.create(None)
    assert cgroupfs.read(second.directory, "cgroup.max.depth") == str(cgroupfs.DEEPEST)
    second.add(spawn())
    with pytest.raises(StepError, match="has processes"):
        first.create(None)
    second.remove()


def test_a_container_cannot_nest_beyond_what_is_removed(root: str) -> None:
    """The tree of cgroups that a container makes has an end, and remove() reaches it."""
    cgroup = Cgroup("/deep", root)
    cgroup.create(None)
    place, depth = cgroup.directory, 0
    with pytest.raises(OSError, match="Resource temporarily unavailable"):
        while True:
            place += "/x"
            os.mkdir(place)
            depth += 1
    assert depth == cgroupfs.DEEPEST
    cgroup.remove()
    assert not os.path.exists(cgroup.directory)


def test_delegation_gives_processes_but_not_limits(root: str) -> None:
    """The container's root may make children and move processes, and may not write its own limits."""
    cgroup = Cgroup("/delegated", root)
    cgroup.create(None)
    cgroup.delegate(100000, 100001)
    owners = {name: os.stat(f"{cgroup.directory}/{name}").st_uid for name in os.listdir(cgroup.directory)}
    assert os.stat(cgroup.directory).st_gid == 100001
    assert owners["cgroup.procs"] == owners["cgroup.subtree_control"] == 100000
    assert owners["cgroup.max.depth"] == owners["cgroup.freeze"] == 0
    cgroup.remove()


def test_statistics_of_a_real_cgroup(root: str, spawn: Callable[..., int]) -> None:
    """CPU time is counted even without controllers."""

    def burn() -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        time.sleep(60)

    cgroup = Cgroup("/usage", root)
    cgroup.create(None)
    before = cgroup.stats().cpu_stats.cpu_usage.total_usage
    cgroup.add(spawn(burn))
    deadline = time.monotonic() + 10
    while cgroup.stats().cpu_stats.cpu_usage.total_usage - before < 20_000_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    cgroup.remove()


def test_null_cgroup_kills_what_it_was_given(spawn: Callable[..., int]) -> None:
    """The stand-in for hosts without v2 still ends its processes."""
    cgroup, pid = NullCgroup(), spawn()
    cgroup.create(None)
    cgroup.add(pid)
    assert cgroup.pids() == [pid]
    cgroup.remove()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
