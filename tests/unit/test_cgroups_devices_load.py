"""Device programs are loaded once for the same rules, and the ones that the agent rehearses are the engines'."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from agent import samplespec
from agent.api import jsonmap, oci_pb2
from agent.cgroups import devices
from agent.linux import bpf
from shim.runspec import defaults
from tests.framework import ebpf_machine


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
    code = devices.program(one(1))
    first, second = devices.load(code), devices.load(code)
    assert (first != second, len(loads)) == (True, 1)
    os.close(first)
    assert os.fstat(second).st_ino == os.fstat(devices._loaded[loads[0]]).st_ino
    os.close(second)
    os.close(devices.load(devices.program(one(2))))
    assert len(loads) == 2


def test_only_a_few_are_kept(loads: list[bytes]) -> None:
    """The oldest goes, with its descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    for minor in range(devices.LOADED_KEPT + 3):
        os.close(devices.load(devices.program(one(minor))))
    assert len(os.listdir("/proc/self/fd")) == before + devices.LOADED_KEPT
    os.close(devices.load(devices.program(one(0))))
    assert len(loads) == devices.LOADED_KEPT + 4


# What containerd 1.6 and 2 write, in their order: major, minor (None: any).
CONTAINERD_DEVICES = ((1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9), (5, 1), (136, None), (5, 2))


def test_the_usual_rules_are_those_of_hako_run_and_of_containerd() -> None:
    """Else every clone would load its own."""
    usual = devices.program(devices.usual())
    assert devices.program(rules(defaults.device_rules())) == usual
    assert devices.program(rules(samplespec.device_rules(CONTAINERD_DEVICES))) == usual
    assert devices.program(rules(samplespec.device_rules(samplespec.DEVICES))) == usual


def test_an_order_that_means_something_is_kept() -> None:
    """A later word against a device wins over an earlier one for it, and the other way round."""
    allow = {"allow": True, "type": "c", "major": 10, "minor": 1, "access": "rwm"}
    deny = allow | {"allow": False}
    program, load = devices.program(rules([allow, deny])), devices.program(rules([deny, allow]))
    assert program != load
    assert ebpf_machine.run(program, bpf.CHARACTER, bpf.READ, 10, 1) == 0
    assert ebpf_machine.run(load, bpf.CHARACTER, bpf.READ, 10, 1) == 1
