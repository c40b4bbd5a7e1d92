"""What VM a pod gets: sizes from limits and annotations, its network namespace, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shim.config import HypervisorConfig
from shim.errors import InvalidSpec, Unsupported
from shim.oci import spec
from shim.sandbox import plan as planning
from shim.sandbox.plan import MIB

HOST = planning.HostLimits(cpus=8, memory_mib=16384)
SANDBOX = {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "p"}
CRIO = {"io.kubernetes.cri-o.ContainerType": "sandbox", "io.kubernetes.cri-o.SandboxID": "p"}


def made(
    annotations: dict[str, str] | None = None,
    resources: dict[str, Any] | None = None,
    netns: dict[str, str] | None = None,
    **config: Any,
) -> planning.SandboxPlan:
    """The plan for a container with these limits."""
    linux = {"namespaces": [netns or {"type": "network"}], "resources": resources or {}}
    text = {"ociVersion": "1.1.0", "root": {"path": "r"}, "linux": linux, "annotations": annotations or {}}
    return planning.plan(spec.parse(json.dumps(text)), "p", "ns", HypervisorConfig(**config), HOST)


def test_no_number_of_vcpus_is_one() -> None:
    """Until the accelerator is known; limits come on top all the same."""
    assert made(default_vcpus=0).vcpus == 1
    assert made(default_vcpus=0, resources={"cpu": {"quota": 200_000}}).vcpus == 3


def test_without_limits_a_vm_has_the_defaults() -> None:
    """1 vCPU and 256 MiB."""
    plan = made()
    assert (plan.vcpus, plan.memory_mib, plan.max_vcpus, plan.max_memory_mib) == (1, 256, 8, 16384)


@pytest.mark.parametrize(
    ("limit", "mib"),
    [(1, 384), (128 * MIB, 384), (128 * MIB + 1, 512), (1 << 40, 16384), (-1, 256), (0, 256)],
)
def test_memory_limits_come_on_top_rounded_up(limit: int, mib: int) -> None:
    """In steps of 128 MiB, at most what the host has; -1 is no limit."""
    assert made(resources={"memory": {"limit": limit}}).memory_mib == mib


@pytest.mark.parametrize(
    ("quota", "period", "vcpus"),
    [(50_000, 100_000, 2), (200_000, 100_000, 3), (10**7, 10**5, 8), (-1, 10**5, 1)],
)
def test_cpu_limits_come_on_top_rounded_up(quota: int, period: int, vcpus: int) -> None:
    """A quota is worth whole CPUs, at most as many as the host has."""
    assert made(resources={"cpu": {"quota": quota, "period": period}}).vcpus == vcpus


def test_a_pod_has_the_size_that_the_engine_says() -> None:
    """containerd's annotations on the sandbox count, not the pause container's own limits."""
    sizes = {"sandbox-memory": str(512 * MIB), "sandbox-cpu-quota": "150000", "sandbox-cpu-period": "100000"}
    annotations = SANDBOX | {f"io.kubernetes.cri.{key}": value for key, value in sizes.items()}
    plan = made(annotations, resources={"memory": {"limit": 1 << 33}})
    assert (plan.vcpus, plan.memory_mib) == (3, 768)
    assert made(SANDBOX).memory_mib == 256


@pytest.mark.parametrize("key", planning.CRIO_RESOURCES)
def test_a_crio_pod_has_the_size_of_its_json(key: str) -> None:
    """Kata does not read these."""
    limits = {"memory_limit_in_bytes": 256 * MIB, "cpu_quota": 100_000, "cpu_period": 100_000}
    plan = made(CRIO | {key: json.dumps(limits)})
    assert (plan.vcpus, plan.memory_mib) == (2, 512)
    with pytest.raises(InvalidSpec, match="LinuxContainerResources"):
        made(CRIO | {key: "[]"})


def test_configured_limits_hold() -> None:
    """max_vcpus and max_memory cut what a pod may ask for."""
    plan = made(resources={"memory": {"limit": 1 << 33}, "cpu": {"quota": 800_000}}, max_vcpus=2, max_memory=1024)
    assert (plan.vcpus, plan.memory_mib) == (2, 1024)


def test_the_network_namespace() -> None:
    """A path is taken, none means a new one, no entry would be the host's and is refused."""
    assert made(netns={"type": "network", "path": "/run/netns/x"}).netns == "/run/netns/x"
    assert made().netns == ""
    with pytest.raises(Unsupported, match="host's network"):
        made(netns={"type": "pid"})


def test_a_size_that_is_no_number_is_refused() -> None:
    """With the annotation's name."""
    with pytest.raises(InvalidSpec, match="sandbox-memory"):
        made(SANDBOX | {"io.kubernetes.cri.sandbox-memory": "much"})
