"""OCI JSON into messages by descriptor."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.api import any_pb2, jsonmap, oci_pb2

CONFIG: dict[str, Any] = {
    "ociVersion": "1.3.0",
    "process": {
        "terminal": True,
        "consoleSize": {"height": 24, "width": 80},
        "user": {"uid": 0, "gid": 0, "umask": 0, "additionalGids": [1, 2]},
        "args": ["sh"],
        "oomScoreAdj": 0,
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 18446744073709551615, "soft": 1024}],
        "scheduler": {"policy": "SCHED_FIFO", "priority": 10},
        "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0},
    },
    "root": {"path": "rootfs"},
    "domainname": "example",
    "mounts": [{"destination": "/proc", "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}]}],
    "annotations": {"k": "v"},
    "linux": {
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}],
            "memory": {"swappiness": 0, "checkBeforeUpdate": True},
            "cpu": {"idle": 1, "burst": 5},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 9}],
            "unified": {"memory.high": "1"},
            "rdma": {"mlx5": {"hcaHandles": 3}, "none": None},
        },
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "syscalls": [{"names": ["open"], "action": "SCMP_ACT_ALLOW", "errnoRet": 0}],
        },
        "personality": {"domain": "LINUX32"},
        "timeOffsets": {"boottime": {"secs": -1, "nanosecs": 5}},
        "intelRdt": None,
    },
    "zos": {"not": "ours"},
}


def filled(mapping: Any) -> oci_pb2.Spec:
    spec = oci_pb2.Spec()
    jsonmap.fill(spec, mapping)
    return spec


def test_every_kind_of_field_is_filled() -> None:
    """Scalars, nested messages, lists, maps and hako's additions arrive under their OCI names."""
    spec = filled(CONFIG)
    assert (spec.Version, spec.Domainname, spec.Root.Path) == ("1.3.0", "example", "rootfs")
    assert spec.Process.Rlimits[0].Hard == 2**64 - 1
    assert list(spec.Process.User.AdditionalGids) == [1, 2]
    assert spec.Process.Scheduler.Priority == 10
    assert spec.Mounts[0].UIDMappings[0].HostID == 1000
    assert dict(spec.Annotations) == {"k": "v"}
    resources = spec.Linux.Resources
    assert (resources.CPU.Idle, resources.CPU.Burst, resources.HugepageLimits[0].Pagesize) == (1, 5, "2MB")
    assert dict(resources.Unified) == {"memory.high": "1"}
    assert resources.Rdma["mlx5"].HcaHandles == 3
    assert spec.Linux.Seccomp.DefaultErrnoRet == 38
    assert spec.Linux.Personality.Domain == "LINUX32"
    assert spec.Linux.TimeOffsets["boottime"].Secs == -1


def test_zero_is_present_and_null_is_absent() -> None:
    """A zero in the JSON is a value; null and a missing key are not."""
    spec = filled(CONFIG)
    assert spec.Process.User.HasField("Umask")
    assert spec.Process.HasField("OOMScoreAdj")
    assert spec.Linux.Resources.Memory.HasField("Swappiness")
    assert not spec.Linux.Resources.Memory.HasField("Limit")
    assert spec.Linux.Seccomp.Syscalls[0].HasField("errnoret")
    assert not spec.Linux.HasField("IntelRdt")
    assert not spec.Linux.Resources.Devices[0].HasField("Major")


def test_empty_object_is_present() -> None:
    """`"root": {}` makes the sub-message present, as a Go pointer would be."""
    assert filled({"root": {}}).HasField("Root")


@pytest.mark.parametrize(
    ("mapping", "field", "reason"),
    [
        ([], ".", "must be an object, not an array"),
        ({"process": []}, "process", "must be an object, not an array"),
        ({"process": {"args": "sh"}}, "process.args", "must be an array, not a string"),
        ({"process": {"args": ["sh", 1]}}, "process.args[1]", "must be a string, not the number 1"),
        ({"process": {"terminal": 1}}, "process.terminal", "must be true or false, not the number 1"),
        ({"process": {"user": {"uid": True}}}, "process.user.uid", "must be an integer, not true or false"),
        ({"process": {"user": {"uid": 1.5}}}, "process.user.uid", "must be an integer, not the number 1.5"),
        ({"process": {"rlimits": [{"hard": -1}]}}, "process.rlimits[0].hard", "out of range"),
        ({"annotations": {"k": 1}}, "annotations.k", "must be a string, not the number 1"),
        ({"annotations": ["k"]}, "annotations", "must be an object, not an array"),
        ({"linux": {"timeOffsets": {"boottime": 3}}}, "linux.timeOffsets.boottime", "must be an object"),
        ({"hostname": "\ud800"}, "hostname", "surrogate"),
    ],
)
def test_wrong_type_names_the_json_path(mapping: Any, field: str, reason: str) -> None:
    """A value that does not fit is refused with the path a user can find in his config.json."""
    with pytest.raises(jsonmap.FieldError) as caught:
        filled(mapping)
    assert caught.value.field == field
    assert reason in caught.value.reason


def test_bytes_come_from_base64() -> None:
    """bytes fields take base64 text, as in protobuf's JSON mapping."""
    message = any_pb2.Any()
    jsonmap.fill(message, {"typeUrl": "u", "value": "AAE="})
    assert message.value == b"\x00\x01"


def test_filling_loads_no_descriptor_module() -> None:
    """fill() stays as light as the messages: nothing of protobuf's generated-code machinery comes in."""
    code = """
import sys
sys.path[:0] = sys.argv[1:]
from agent.api import jsonmap, oci_pb2
jsonmap.fill(oci_pb2.Spec(), {"process": {"args": ["x"]}, "annotations": {"a": "b"}})
print(sorted({"typing", "re", "google.protobuf.descriptor", "google.protobuf.descriptor_pb2"} & set(sys.modules)))
"""
    site = str(Path(__import__("google.protobuf").__path__[0]).parent)
    argv = ["/usr/bin/python3", "-IS", "-c", code, str(Path(__file__).resolve().parents[2]), site]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "[]\n"
