"""Device programs are loaded once for the same rules, and the ones that the agent rehearses are the engines'."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from agent import warm
from agent.api import jsonmap, oci_pb2
from agent.cgroups import devices
from agent.linux import bpf
from shim.runspec import defaults


def rules(given: list[dict[str, Any]]) -> Any:
    """OCI's list as a message."""
    resources = oci_pb2.LinuxResources()
    jsonmap.fill(resources, {"devices": given})
    return resources.Devices


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What was given to the kernel."""
    given: list[bytes] = []

    def load(program: bytes) -> int:
        given.append(program)
        return os.memfd_create("program")

    monkeypatch.setattr(bpf, "load_device_program", load)
    monkeypatch.setattr(devices, "_loaded", {})
    yield given
    for fd in devices._loaded.values():
        os.close(fd)


def one(minor: int) -> Any:
    """A list that allows one device."""
    return rules([{"allow": True, "type": "c", "major": 10, "minor": minor, "access": "r"}])


def test_the_same_rules_are_loaded_once(loads: list[bytes]) -> None:
    """Everybody gets a descriptor of his own."""
    first, second = devices.load(one(1)), devices.load(one(1))
    assert (first != second, len(loads)) == (True, 1)
    os.close(first)
    assert os.fstat(second).st_ino == os.fstat(devices._loaded[loads[0]]).st_ino
    os.close(second)
    os.close(devices.load(one(2)))
    assert len(loads) == 2


def test_only_a_few_are_kept(loads: list[bytes]) -> None:
    """The oldest goes, with its descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    for minor in range(devices.LOADED_KEPT + 3):
        os.close(devices.load(one(minor)))
    assert len(os.listdir("/proc/self/fd")) == before + devices.LOADED_KEPT
    os.close(devices.load(one(0)))
    assert len(loads) == devices.LOADED_KEPT + 4


def test_the_rehearsed_rules_are_those_of_hako_run() -> None:
    """Else every clone would load its own."""
    ours = defaults.device_rules()
    assert devices.program(rules(warm.device_rules(warm.HAKO_DEVICES, nodes=True))) == devices.program(rules(ours))
