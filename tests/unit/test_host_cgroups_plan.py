"""Cgroups on the host (shim/cgroups.py): paths and limits, without touching one."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim import cgroups
from shim.cgroups import container_path, sandbox_path, settings_v1, settings_v2
from shim.errors import InvalidSpec

HYBRID = """\
30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
35 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:12 - cgroup cgroup rw,cpu,cpuacct
36 30 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:13 - cgroup cgroup rw,memory
99 30 0:32 /x /var/lib/box/sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
"""


def test_hybrid_host_is_understood(tmp_path: Path) -> None:
    """Each hierarchy counts once, also when another container's tree has it mounted too."""
    (tmp_path / "mountinfo").write_text(HYBRID)
    found = cgroups.hierarchies(str(tmp_path / "mountinfo"))
    assert [
        (item.mount.removeprefix("/sys/fs/cgroup/"), item.version, item.controllers) for item in found
    ] == [
        ("unified", 2, ()),
        ("systemd", 1, ()),
        ("cpu,cpuacct", 1, ("cpu", "cpuacct")),
        ("memory", 1, ("memory",)),
    ]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", "/hako/c1"),
        ("/kubepods/burstable/pod7/c1", "/kubepods/burstable/pod7/c1"),
        ("user/c1", "/user/c1"),
        ("system.slice:runc:c1", "/system.slice/runc-c1.scope"),
        (":crio:c1", "/system.slice/crio-c1.scope"),
        ("-.slice:p:c1", "/p-c1.scope"),
        (
            "kubepods-burstable-pod7.slice:cri-containerd:c1",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice/cri-containerd-c1.scope",
        ),
    ],
)
def test_cgroups_path_in_both_forms(given: str, path: str) -> None:
    """cgroupfs paths and systemd's slice:prefix:name both name a directory."""
    assert container_path(given, "c1") == path


@pytest.mark.parametrize("given", ["../x", "/a/../../x", "/", "a--b.slice:p:n", "a.slice:p:"])
def test_cgroups_path_that_leads_out_is_refused(given: str) -> None:
    """A path that is not a cgroup of its own is a wrong spec, not a surprise later."""
    with pytest.raises(InvalidSpec, match="cgroupsPath"):
        container_path(given, "c1")


def test_vm_is_beside_the_sandbox_container() -> None:
    """The VM is under the pod's limits but not under its pause container's."""
    assert sandbox_path("/kubepods/pod7/s1", "s1") == "/kubepods/pod7/hako_s1"
    assert sandbox_path("kubepods-pod7.slice:cri:s1", "s1") == "/kubepods.slice/kubepods-pod7.slice/hako_s1"


RESOURCES = {
    "memory": {"limit": 1 << 30, "swap": 3 << 29, "reservation": 1 << 20},
    "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0-1"},
    "pids": {"limit": -1},
    "unified": {"memory.high": "9"},
}


def test_limits_in_version_1() -> None:
    """Every limit has its file; what was not given is not written."""
    assert settings_v1(RESOURCES) == [
        ("memory", "memory.limit_in_bytes", "1073741824"),
        ("memory", "memory.memsw.limit_in_bytes", "1610612736"),
        ("memory", "memory.soft_limit_in_bytes", "1048576"),
        ("cpu", "cpu.shares", "1024"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpuset", "cpuset.cpus", "0-1"),
        ("pids", "pids.max", "max"),
    ]
    assert settings_v1({}) == []


def test_limits_in_version_2() -> None:
    """Swap counts without memory, shares become a weight, `unified` is written as it is."""
    assert settings_v2(RESOURCES) == [
        ("memory", "memory.max", "1073741824"),
        ("memory", "memory.swap.max", "536870912"),
        ("memory", "memory.low", "1048576"),
        ("cpu", "cpu.weight", "39"),
        ("cpu", "cpu.max", "50000 100000"),
        ("cpuset", "cpuset.cpus", "0-1"),
        ("pids", "pids.max", "max"),
        ("memory", "memory.high", "9"),
    ]


def test_unlimited_in_version_2() -> None:
    """-1 takes a limit away."""
    wanted = {"memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1, "period": 1000}}
    assert [value for _, _, value in settings_v2(wanted)] == ["max", "max", "max 1000"]


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1, 1), (262144, 10000), (9999999, 10000)])
def test_weight_covers_the_range(shares: int, weight: int) -> None:
    """The smallest and largest shares are the smallest and largest weight."""
    assert settings_v2({"cpu": {"shares": shares}}) == [("cpu", "cpu.weight", str(weight))]
