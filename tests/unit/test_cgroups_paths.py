"""agent/cgroups: where a container's cgroup lies, and device rules."""

from __future__ import annotations

from typing import Any

import pytest

from agent import cgroups
from agent.api import jsonmap, oci_pb2
from agent.cgroups import devices
from agent.errors import InvalidSpec
from agent.linux import bpf
from tests.framework import ebpf_machine


@pytest.mark.parametrize(
    ("cgroups_path", "expected"),
    [
        ("", "/hako/c1"),
        ("/kubepods/burstable/pod1/c1", "/kubepods/burstable/pod1/c1"),
        ("kubepods//pod1/./c1/", "/kubepods/pod1/c1"),
        (
            "kubepods-burstable-pod1.slice:cri-containerd:c1",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-c1.scope",
        ),
        (":docker:c1", "/system.slice/docker-c1.scope"),
        ("-.slice:docker:c1", "/docker-c1.scope"),
        ("a.slice::b.slice", "/a.slice/b.slice"),
    ],
)
def test_path_of_a_cgroup(cgroups_path: str, expected: str) -> None:
    """OCI's cgroupsPath, cgroupfs or systemd form, is a path below the guest's root."""
    assert cgroups.guest_path(cgroups_path, "c1") == expected


@pytest.mark.parametrize("cgroups_path", ["/../x", "/a/../../x", "/", "a\0b", "::", "a.slice:p:"])
def test_paths_that_leave_the_root_are_refused(cgroups_path: str) -> None:
    """Nothing outside of the cgroup root can be named, nor the root itself."""
    with pytest.raises(InvalidSpec):
        cgroups.guest_path(cgroups_path, "c1")


def allowed(rules: list[dict[str, Any]], kind: int, access: int, major: int, minor: int) -> bool:
    """The verdict of the program for OCI device rules."""
    resources = oci_pb2.LinuxResources()
    jsonmap.fill(resources, {"devices": rules})
    return ebpf_machine.run(devices.program(resources.Devices), kind, access, major, minor)


DENY_ALL = {"allow": False, "access": "rwm"}


def test_default_devices_are_always_usable() -> None:
    """null, zero, full, random, urandom, tty, ptmx and pseudo-terminals work even after "deny all"."""
    for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 0), (136, 9)):
        assert allowed([DENY_ALL], bpf.CHARACTER, bpf.READ | bpf.WRITE, major, minor)


def test_everything_else_is_denied() -> None:
    """Without a rule no block device and no other character device can be opened, but nodes can be made."""
    for rules in ([], [DENY_ALL]):
        assert not allowed(rules, bpf.BLOCK, bpf.READ, 254, 0)
        assert not allowed(rules, bpf.CHARACTER, bpf.READ, 10, 200)
        assert not allowed(rules, bpf.CHARACTER, bpf.READ, 1, 1)
        assert allowed(rules, bpf.BLOCK, bpf.MKNOD, 254, 0)


def test_rules_of_the_specification_are_applied() -> None:
    """Numbers, wildcards and accesses of a rule count; minor 0 is a number, an absent one is a wildcard."""
    fuse = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}
    assert allowed([DENY_ALL, fuse], bpf.CHARACTER, bpf.READ | bpf.WRITE, 10, 229)
    assert not allowed([DENY_ALL, fuse], bpf.CHARACTER, bpf.READ, 10, 228)
    assert not allowed([DENY_ALL, fuse], bpf.BLOCK, bpf.READ, 10, 229)
    zero = {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "r"}
    assert allowed([zero], bpf.BLOCK, bpf.READ, 8, 0)
    assert not allowed([zero], bpf.BLOCK, bpf.READ, 8, 1)
    assert not allowed([zero], bpf.BLOCK, bpf.READ | bpf.WRITE, 8, 0)
    disks = {"allow": True, "type": "b", "major": 8, "access": "rwm"}
    assert allowed([disks], bpf.BLOCK, bpf.WRITE, 8, 77)
    everything = {"allow": True, "type": "a", "major": -1, "minor": -1, "access": "rwm"}
    assert allowed([DENY_ALL, everything], bpf.BLOCK, bpf.WRITE, 1, 1)


@pytest.mark.parametrize(
    "rule", [{"allow": True, "type": "x"}, {"allow": True, "access": "rx"}, {"allow": True, "major": 1 << 33}]
)
def test_bad_device_rules_are_refused(rule: dict[str, Any]) -> None:
    """A rule that cannot be meant names its place."""
    with pytest.raises(InvalidSpec, match=r"linux\.resources\.devices\[0\]"):
        allowed([rule], bpf.BLOCK, bpf.READ, 1, 1)
