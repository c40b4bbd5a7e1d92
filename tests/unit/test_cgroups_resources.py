"""agent/cgroups/resources.py: OCI resources to cgroup v2 files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent.api import jsonmap, oci_pb2
from agent.cgroups import resources
from agent.errors import InvalidSpec

NOTHING: dict[str, str] = {}


def message(config: dict[str, Any]) -> oci_pb2.LinuxResources:
    """OCI JSON as the agent gets it."""
    filled = oci_pb2.LinuxResources()
    jsonmap.fill(filled, config)
    return filled


def current(files: dict[str, str]) -> Callable[[str], str | None]:
    """The cgroup's files as they are before."""
    return files.get


def written(config: dict[str, Any], files: dict[str, str] = NOTHING) -> list[tuple[str, str]]:
    """(file, value) in order."""
    return [(name, value) for name, value, _ in resources.settings(message(config), current(files))]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, []),
        ({"cpu": {}}, []),
        ({"cpu": {"shares": 2}}, [("cpu.weight", "1")]),
        ({"cpu": {"shares": 1024}}, [("cpu.weight", "39")]),
        ({"cpu": {"shares": 262144}}, [("cpu.weight", "10000")]),
        ({"cpu": {"shares": 1 << 40}}, [("cpu.weight", "10000")]),
        ({"cpu": {"shares": 0}}, []),
        ({"cpu": {"quota": 50000, "period": 100000}}, [("cpu.max", "50000 100000")]),
        ({"cpu": {"quota": -1, "period": 100000}}, [("cpu.max", "max 100000")]),
        ({"cpu": {"quota": 50000}}, [("cpu.max", "50000")]),
        ({"cpu": {"idle": 1}}, [("cpu.idle", "1")]),
        ({"cpu": {"idle": 1, "shares": 1024}}, [("cpu.weight", "39"), ("cpu.idle", "1")]),
        ({"cpu": {"idle": 0, "shares": 1024}}, [("cpu.idle", "0"), ("cpu.weight", "39")]),
        ({"cpu": {"cpus": "0-1,3", "mems": "0"}}, [("cpuset.cpus", "0-1,3"), ("cpuset.mems", "0")]),
        ({"cpu": {"realtimeRuntime": 5, "realtimePeriod": 10}}, []),
        ({"memory": {"limit": 1048576}}, [("memory.max", "1048576")]),
        ({"memory": {"limit": -1}}, [("memory.swap.max", "max"), ("memory.max", "max")]),
        ({"memory": {"reservation": 4096}}, [("memory.low", "4096")]),
        ({"memory": {"limit": 100, "swap": 150}}, [("memory.swap.max", "50"), ("memory.max", "100")]),
        ({"memory": {"limit": 100, "swap": 100}}, [("memory.swap.max", "0"), ("memory.max", "100")]),
        ({"memory": {"limit": 100, "swap": -1}}, [("memory.swap.max", "max"), ("memory.max", "100")]),
        ({"memory": {"kernel": 5, "swappiness": 10, "disableOOMKiller": True}}, []),
        ({"pids": {"limit": 100}}, [("pids.max", "100")]),
        ({"pids": {"limit": -1}}, [("pids.max", "max")]),
        ({"pids": {"limit": 0}}, []),
        ({"blockIO": {"weight": 10}}, [("io.weight", "default 1")]),
        ({"blockIO": {"weight": 1000}}, [("io.weight", "default 10000")]),
        (
            {"blockIO": {"weightDevice": [{"major": 8, "minor": 16, "weight": 500}]}},
            [("io.weight", "8:16 4950")],
        ),
        (
            {
                "blockIO": {
                    "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}],
                    "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 0}],
                }
            },
            [("io.max", "8:0 rbps=1024"), ("io.max", "8:0 wiops=max")],
        ),
        (
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]},
            [("hugetlb.2MB.max", "4194304"), ("hugetlb.2MB.rsvd.max", "4194304")],
        ),
        (
            {"rdma": {"mlx5_0": {"hcaHandles": 3, "hcaObjects": 0}}},
            [("rdma.max", "mlx5_0 hca_handle=3 hca_object=0")],
        ),
        ({"network": {"classID": 5}}, []),
        (
            {"unified": {"memory.high": "1000", "io.max": "8:0 rbps=1\n8:16 rbps=2\n"}},
            [("io.max", "8:0 rbps=1"), ("io.max", "8:16 rbps=2"), ("memory.high", "1000")],
        ),
        ({"unified": {"cgroup.max.depth": "3"}}, [("cgroup.max.depth", "3")]),
    ],
)  # fmt: skip
def test_conversion(config: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    """Each OCI value becomes its v2 file and value; what v2 lacks is left out."""
    assert written(config) == expected


def test_unified_comes_last() -> None:
    """The unified map may override what was converted, so it is written after it."""
    config = {"unified": {"cpu.weight": "77"}, "cpu": {"shares": 1024}, "pids": {"limit": 5}}
    assert written(config)[-1] == ("cpu.weight", "77")


@pytest.mark.parametrize("present", ["200000 50000", "max 100000", None])
def test_period_alone_keeps_the_quota(present: str | None) -> None:
    """A changed period must not lift or invent a quota."""
    files = {"cpu.max": present} if present else {}
    quota = (present or "max").split()[0]
    assert written({"cpu": {"period": 80000}}, files) == [("cpu.max", f"{quota} 80000")]


@pytest.mark.parametrize(
    ("present", "quota", "order"),
    [
        ("0", 50000, ["cpu.max", "cpu.max.burst"]),
        ("60000", 50000, ["cpu.max.burst", "cpu.max"]),
        ("60000", -1, ["cpu.max", "cpu.max.burst"]),
    ],
)
def test_burst_and_quota_in_the_order_the_kernel_takes(present: str, quota: int, order: list[str]) -> None:
    """The burst may not exceed the quota after either write."""
    config = {"cpu": {"quota": quota, "period": 100000, "burst": 10000}}
    assert [name for name, _ in written(config, {"cpu.max.burst": present})] == order


def test_bfq_takes_weights_as_they_are() -> None:
    """Where BFQ schedules, its file and range (that of v1) are used."""
    config = {"blockIO": {"weight": 300, "weightDevice": [{"major": 8, "minor": 0, "weight": 20}]}}
    expected = [("io.bfq.weight", "default 300"), ("io.bfq.weight", "8:0 20")]
    assert written(config, {"io.bfq.weight": "default 100"}) == expected


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"memory": {"limit": 100, "swap": 50}}, "linux.resources.memory.swap"),
        ({"memory": {"swap": 50}}, "linux.resources.memory.swap"),
        ({"memory": {"limit": -1, "swap": 50}}, "linux.resources.memory.swap"),
        ({"memory": {"limit": 100, "swap": -2}}, "linux.resources.memory.swap"),
        ({"hugepageLimits": [{"pageSize": "2/../MB", "limit": 1}]}, "linux.resources.hugepageLimits"),
        ({"hugepageLimits": [{"pageSize": "MB", "limit": 1}]}, "linux.resources.hugepageLimits"),
        ({"hugepageLimits": [{"pageSize": "2MK", "limit": 1}]}, "linux.resources.hugepageLimits"),
        ({"unified": {"../memory.max": "1"}}, "linux.resources.unified['../memory.max']"),
        ({"unified": {"memory": "1"}}, "linux.resources.unified['memory']"),
        ({"unified": {"..": "1"}}, "linux.resources.unified['..']"),
        ({"unified": {"cgroup.procs": "1"}}, "linux.resources.unified['cgroup.procs']"),
        ({"unified": {"cgroup.kill": "1"}}, "linux.resources.unified['cgroup.kill']"),
    ],
)
def test_senseless_values_are_refused(config: dict[str, Any], field: str) -> None:
    """A value that cannot be meant names its field; a unified key cannot leave the cgroup's directory."""
    with pytest.raises(InvalidSpec) as refused:
        written(config)
    assert refused.value.field == field


def test_check_before_update_refuses_a_limit_below_usage() -> None:
    """With checkBeforeUpdate a limit below what is in use is refused instead of killing."""
    config = {"memory": {"limit": 1000, "checkBeforeUpdate": True}}
    with pytest.raises(InvalidSpec, match="checkBeforeUpdate"):
        written(config, {"memory.current": "1001"})
    assert written(config, {"memory.current": "1000"}) == [("memory.max", "1000")]
