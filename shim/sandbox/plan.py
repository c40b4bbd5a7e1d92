"""What VM a pod needs, from the configuration, its spec and its annotations. Pure: prints well, boots
nothing.

Owns: sizing, which network namespace, what is refused. Must not know: QEMU, sockets, processes. Called by
sandbox.py, which hands the plan to builder.py.

Size: `default_vcpus` (0: one, vmspec.py) and `default_memory` are the VM's own; the pod's limits (from the engine's annotations
on the sandbox, or the container's own limits when it is alone) come on top, memory rounded up to
`memory_granularity`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from shim.config import HypervisorConfig
from shim.errors import ConfigError, InvalidSpec, Unsupported
from shim.oci import grouping
from shim.oci.spec import Spec

MIB = 1 << 20
DEFAULT_SHM = 64 * MIB  # what every engine gives a pod that does not say

CRI_MEMORY = "io.kubernetes.cri.sandbox-memory"  # bytes
CRI_CPU_QUOTA = "io.kubernetes.cri.sandbox-cpu-quota"  # microseconds per period
CRI_CPU_PERIOD = "io.kubernetes.cri.sandbox-cpu-period"
# JSON of the CRI's LinuxContainerResources; the second name is that of older versions.
CRIO_RESOURCES = ("pod-linux-resources.crio.io", "io.kubernetes.cri-o.PodLinuxResources")


class HostLimits(NamedTuple):
    """What the host can give: CPUs and MiB."""

    cpus: int
    memory_mib: int


class Size(NamedTuple):
    """A pod's limits: bytes of memory and CPUs in microseconds per period; 0 means no limit is known."""

    memory: int = 0
    cpu_quota: int = 0
    cpu_period: int = 0


class SandboxPlan(NamedTuple):
    """A VM to be built.

    `netns`: host path of the pod's network namespace, "" for a new one. `dns`: lines of resolv.conf.
    `shm_size` in bytes. `cgroups_path`: linux.cgroupsPath of the sandbox container, "" if none. `own_files`: nobody but the
    guest writes to what it is shown (ownfiles.py).
    """

    sandbox_id: str
    namespace: str
    hostname: str
    netns: str
    cgroups_path: str
    vcpus: int
    max_vcpus: int
    memory_mib: int
    max_memory_mib: int
    shm_size: int
    dns: tuple[str, ...]
    own_files: bool = False


def plan(
    spec: Spec,
    sandbox_id: str,
    namespace: str,
    config: HypervisorConfig,
    host: HostLimits,
    *,
    shm_size: int = 0,
    resolv_conf: str = "",
    own_files: bool = False,
) -> SandboxPlan:
    """The VM for the pod whose first container has this spec. Raises InvalidSpec, Unsupported."""
    size = size_of(spec)
    if config.default_memory > host.memory_mib:
        reason = f"a VM of {config.default_memory} MiB memory does not fit into the host's {host.memory_mib} MiB"
        raise ConfigError(reason, key="hypervisor.default_memory")
    max_memory = config.max_memory or host.memory_mib
    max_vcpus = config.max_vcpus or host.cpus
    return SandboxPlan(
        sandbox_id=sandbox_id,
        namespace=namespace,
        hostname=spec.hostname or "",
        netns=_netns(spec),
        cgroups_path=(spec.linux.cgroups_path if spec.linux else None) or "",
        vcpus=max(1, min((config.default_vcpus or 1) + cpus(size), max_vcpus)),
        max_vcpus=max_vcpus,
        memory_mib=_memory(config, size.memory, max_memory),
        max_memory_mib=max_memory,
        shm_size=shm_size or DEFAULT_SHM,
        dns=tuple(line for line in resolv_conf.splitlines() if line.strip()),
        own_files=own_files,
    )


def size_of(spec: Spec) -> Size:
    """The limits of the whole pod: what the engine says of it, else the container's own if it is alone."""
    annotations = spec.annotations or {}
    if grouping.role_of(annotations) == grouping.SINGLE:
        return _own_size(spec)
    for key in CRIO_RESOURCES:
        if annotations.get(key):
            return _crio_size(key, annotations[key])
    return Size(
        _number(annotations, CRI_MEMORY),
        _number(annotations, CRI_CPU_QUOTA),
        _number(annotations, CRI_CPU_PERIOD),
    )


def cpus(size: Size) -> int:
    """CPUs that the quota is worth, rounded up; 0 without one."""
    if size.cpu_quota <= 0 or size.cpu_period <= 0:
        return 0
    return -(-size.cpu_quota // size.cpu_period)


def _own_size(spec: Spec) -> Size:
    limits = spec.linux.resources if spec.linux else None
    if limits is None:
        return Size()
    memory = limits.memory.limit if limits.memory else None
    cpu = limits.cpu
    return Size(max(0, memory or 0), (cpu.quota or 0) if cpu else 0, (cpu.period or 100_000) if cpu else 0)


def _crio_size(key: str, text: str) -> Size:
    try:
        given = json.loads(text)
        memory, quota, period = (int(given.get(name, 0)) for name in ("memory_limit_in_bytes", "cpu_quota", "cpu_period"))
    except (ValueError, TypeError, AttributeError):
        raise InvalidSpec(f"annotations[{key}]", "not the JSON of LinuxContainerResources") from None
    return Size(max(0, memory), quota, period)


def _number(annotations: Mapping[str, str], key: str) -> int:
    text = annotations.get(key) or "0"
    try:
        return max(0, int(text))
    except ValueError:
        raise InvalidSpec(f"annotations[{key}]", f"{text!r} is not a number") from None


def _memory(config: HypervisorConfig, limit: int, maximum: int) -> int:
    """MiB of the VM for a limit in bytes; a limit that the host cannot give is cut, the cgroup still holds
    it.
    """
    step = config.memory_granularity
    extra = -(-limit // (step * MIB)) * step
    return max(config.default_memory, min(config.default_memory + extra, maximum))


def _netns(spec: Spec) -> str:
    entry = spec.namespace("network")
    if entry is None:
        raise Unsupported(
            "a VM cannot share the host's network namespace",
            step="network",
            hint="run without host networking (hostNetwork: true, --net-host)",
        )
    return entry.path or ""
