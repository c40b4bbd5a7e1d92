"""OCI resources as values of cgroup v2 files.

Owns: every conversion from cgroup v1 terms (OCI's) to v2. Pure: what is in the files now comes through a
function, nothing is written. Called by agent/cgroups alone.

Without counterpart in v2 and therefore ignored, as runc and crun do: realtime CPU, kernel and kernel-TCP
memory, swappiness, disableOOMKiller, leafWeight, network class and priorities.
"""

from __future__ import annotations

from agent.errors import InvalidSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from agent.api import oci_pb2

    Setting = tuple[str, str, bool]  # file, value, whether a missing file is fine
    Current = Callable[[str], str | None]  # file -> its text now, None where there is none

FIELD = "linux.resources"
_UNITS = ("B", "KB", "MB", "GB")


def settings(resources: oci_pb2.LinuxResources, current: Current) -> list[Setting]:
    """What to write, in this order. Raises InvalidSpec for values that cannot be meant."""
    found: list[Setting] = []
    if resources.HasField("CPU"):
        found += cpu(resources.CPU, current)
    if resources.HasField("Memory"):
        found += memory(resources.Memory, current)
    if resources.HasField("Pids") and resources.Pids.Limit:
        found.append(("pids.max", _limit(resources.Pids.Limit), False))
    if resources.HasField("BlockIO"):
        found += block_io(resources.BlockIO, current)
    for page in resources.HugepageLimits:
        found += huge_pages(page)
    found += [rdma(device, limit) for device, limit in sorted(resources.Rdma.items())]
    return found + unified(resources)


def _limit(value: int) -> str:
    return "max" if value < 0 else str(value)


# --- cpu --------------------------------------------------------------------------------------------------


def cpu_weight(shares: int) -> int:
    """v1 shares 2..262144 as v2 weight 1..10000, the linear mapping that all runtimes use."""
    shares = min(max(shares, 2), 262144)
    return 1 + (shares - 2) * 9999 // 262142


def cpu(config: oci_pb2.LinuxCPU, current: Current) -> list[Setting]:
    """cpu.* and cpuset.* of an OCI `cpu` object."""
    weight = [("cpu.weight", str(cpu_weight(config.Shares)), False)] if config.Shares else []
    idle = [("cpu.idle", str(config.Idle), False)] if config.HasField("Idle") else []
    # The kernel refuses a weight while the cgroup is idle.
    found: list[Setting] = weight + idle if config.Idle else idle + weight
    found += bandwidth(config, current)
    if config.Cpus:
        found.append(("cpuset.cpus", config.Cpus, False))
    if config.Mems:
        found.append(("cpuset.mems", config.Mems, False))
    return found


def bandwidth(config: oci_pb2.LinuxCPU, current: Current) -> list[Setting]:
    """cpu.max and cpu.max.burst, in the order in which the kernel takes them."""
    ceiling = _cpu_max(config, current)
    found: list[Setting] = [("cpu.max", ceiling, False)] if ceiling else []
    if not config.HasField("Burst"):
        return found
    burst: Setting = ("cpu.max.burst", str(config.Burst), False)
    # burst <= quota must hold after each write.
    quota = ceiling.split()[0] if ceiling else "max"
    present = int(current("cpu.max.burst") or 0)
    if quota != "max" and present > int(quota):
        return [burst, *found]
    return [*found, burst]


def _cpu_max(config: oci_pb2.LinuxCPU, current: Current) -> str:
    """ "QUOTA PERIOD"; without a period the kernel keeps its own; "" where nothing is asked."""
    if not config.Quota and not config.Period:
        return ""
    if config.Quota:
        quota = "max" if config.Quota < 0 else str(config.Quota)
    else:
        quota = (current("cpu.max") or "max").split()[0]
    return f"{quota} {config.Period}" if config.Period else quota


# --- memory -----------------------------------------------------------------------------------------------


def swap_max(limit: int, total: int) -> str:
    """memory.swap.max for OCI's `limit` and `swap` (memory plus swap); "" where nothing is asked."""
    field = f"{FIELD}.memory.swap"
    if total == 0:
        # v1 semantics: unlimited memory, swap not mentioned: both unlimited.
        return "max" if limit == -1 else ""
    if total == -1:
        return "max"
    if total < -1:
        raise InvalidSpec(field, f"{total} is not a limit")
    if limit <= 0:
        raise InvalidSpec(field, "memory plus swap cannot be limited without a memory limit")
    if total < limit:
        raise InvalidSpec(field, f"memory plus swap ({total}) is less than memory ({limit})")
    return str(total - limit)


def memory(config: oci_pb2.LinuxMemory, current: Current) -> list[Setting]:
    """memory.* of an OCI `memory` object; 0 means not set. Raises InvalidSpec, also for checkBeforeUpdate.
    """
    found: list[Setting] = []
    swap = swap_max(config.Limit, config.Swap)
    if swap:
        # A guest without swap has no such file, and any limit holds.
        found.append(("memory.swap.max", swap, True))
    if config.Limit:
        if config.CheckBeforeUpdate:
            _refuse_below_usage(config.Limit, current)
        found.append(("memory.max", _limit(config.Limit), False))
    if config.Reservation:
        found.append(("memory.low", _limit(config.Reservation), False))
    return found


def _refuse_below_usage(limit: int, current: Current) -> None:
    usage = int(current("memory.current") or 0)
    if 0 <= limit < usage:
        reason = f"{limit} is less than the {usage} bytes in use, and checkBeforeUpdate is set"
        raise InvalidSpec(f"{FIELD}.memory.limit", reason)


# --- block I/O --------------------------------------------------------------------------------------------


def io_weight(weight: int) -> int:
    """v1 blkio weight 10..1000 as v2 weight 1..10000."""
    return 1 + (min(max(weight, 10), 1000) - 10) * 9999 // 990


def block_io(config: oci_pb2.LinuxBlockIO, current: Current) -> list[Setting]:
    """io.* of an OCI `blockIO` object."""
    return _weights(config, current) + _throttles(config)


def _weights(config: oci_pb2.LinuxBlockIO, current: Current) -> list[Setting]:
    # BFQ takes v1's range as it is. A weight is a wish among neighbours: without a scheduler for it, it is
    # void.
    bfq = current("io.bfq.weight") is not None
    name, scale = ("io.bfq.weight", int) if bfq else ("io.weight", io_weight)
    found: list[Setting] = []
    if config.Weight:
        found.append((name, f"default {scale(config.Weight)}", True))
    for device in config.WeightDevice:
        if device.Weight:
            found.append((name, f"{device.Major}:{device.Minor} {scale(device.Weight)}", True))
    return found


def _throttles(config: oci_pb2.LinuxBlockIO) -> list[Setting]:
    kinds = (
        ("rbps", config.ThrottleReadBpsDevice),
        ("wbps", config.ThrottleWriteBpsDevice),
        ("riops", config.ThrottleReadIOPSDevice),
        ("wiops", config.ThrottleWriteIOPSDevice),
    )
    # Rate 0 takes a limit away, as it did in v1.
    return [
        ("io.max", f"{device.Major}:{device.Minor} {key}={device.Rate or 'max'}", False)
        for key, devices in kinds
        for device in devices
    ]


# --- the rest ---------------------------------------------------------------------------------------------


def huge_pages(page: oci_pb2.LinuxHugepageLimit) -> list[Setting]:
    """hugetlb.SIZE.max, and the limit of reservations where the kernel has it."""
    digits = page.Pagesize.rstrip("BKMG")
    if not digits.isdigit() or page.Pagesize[len(digits) :] not in _UNITS:
        raise InvalidSpec(f"{FIELD}.hugepageLimits", f"{page.Pagesize!r} is not a page size such as 2MB")
    limit = str(page.Limit)
    return [
        (f"hugetlb.{page.Pagesize}.max", limit, False),
        (f"hugetlb.{page.Pagesize}.rsvd.max", limit, True),
    ]


def rdma(device: str, limit: oci_pb2.LinuxRdma) -> Setting:
    """One device's line of rdma.max."""
    words = [device]
    if limit.HasField("HcaHandles"):
        words.append(f"hca_handle={limit.HcaHandles}")
    if limit.HasField("HcaObjects"):
        words.append(f"hca_object={limit.HcaObjects}")
    return "rdma.max", " ".join(words), False


# cgroup.* files are the runtime's, but for these.
_UNIFIED_CORE = ("cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure")


def unified(resources: oci_pb2.LinuxResources) -> list[Setting]:
    """The `unified` map as it stands, one write per line of a value. Raises InvalidSpec for a strange key.
    """
    found: list[Setting] = []
    for name, value in sorted(resources.Unified.items()):
        field = f"{FIELD}.unified[{name!r}]"
        controller, dot, rest = name.partition(".")
        if "/" in name or "\0" in name or not (controller and dot and rest):
            raise InvalidSpec(field, "is not the name of a cgroup file")
        if controller == "cgroup" and name not in _UNIFIED_CORE:
            raise InvalidSpec(field, "is managed by the runtime")
        found += [(name, line, False) for line in value.splitlines() or [""]]
    return found
