"""What Stats answers: the guest's counters as io.containerd.cgroups.v2.Metrics. Pure.

Owns: the mapping, and that no sub-message is missing (CRI-O dereferences them unasked). Must not know:
where the numbers come from. Called by service.py.
"""

from __future__ import annotations

from agent.api import agent_pb2
from shim.task.api import metrics_pb2

TYPE_URL = "io.containerd.cgroups.v2.Metrics"
# memory.stat keys whose names differ from the fields of MemoryStat; the rest have the same names.
RENAMED = {"workingset_refault_file": "workingset_refault", "workingset_activate_file": "workingset_activate"}
NETWORK = (
    "name", "rx_bytes", "rx_packets", "rx_errors", "rx_dropped",
    "tx_bytes", "tx_packets", "tx_errors", "tx_dropped",
)  # fmt: skip


def metrics(stats: agent_pb2.StatsContainerResponse) -> metrics_pb2.Metrics:
    """One container's counters; CPU times in microseconds, memory in bytes."""
    cgroup = stats.cgroup_stats
    message = metrics_pb2.Metrics()
    message.pids.SetInParent()
    message.pids.current = cgroup.pids_stats.current
    message.pids.limit = cgroup.pids_stats.limit
    _cpu(message.cpu, cgroup.cpu_stats)
    _memory(message.memory, message.memory_events, cgroup.memory_stats)
    _io(message.io, cgroup.blkio_stats)
    for size, usage in sorted(cgroup.hugetlb_stats.items()):
        message.hugetlb.add(current=usage.usage, max=usage.max_usage, pagesize=size)
    for link in stats.network_stats:
        message.network.add(**{name: getattr(link, name) for name in NETWORK})
    return message


def _cpu(target: metrics_pb2.CPUStat, source: agent_pb2.CpuStats) -> None:
    target.SetInParent()
    target.usage_usec = source.cpu_usage.total_usage // 1000
    target.user_usec = source.cpu_usage.usage_in_usermode // 1000
    target.system_usec = source.cpu_usage.usage_in_kernelmode // 1000
    target.nr_periods = source.throttling_data.periods
    target.nr_throttled = source.throttling_data.throttled_periods
    target.throttled_usec = source.throttling_data.throttled_time // 1000


def _memory(target: metrics_pb2.MemoryStat, events: metrics_pb2.MemoryEvents, source: agent_pb2.MemoryStats) -> None:
    target.SetInParent()
    events.SetInParent()
    known = target.DESCRIPTOR.fields_by_name
    for key, value in source.stats.items():
        name = RENAMED.get(key, key)
        if name in known and name != "psi":
            setattr(target, name, value)
    target.usage = source.usage.usage
    target.usage_limit = source.usage.limit
    target.max_usage = source.usage.max_usage
    target.swap_usage = source.swap_usage.usage
    target.swap_limit = source.swap_usage.limit
    for key in ("low", "high", "max", "oom", "oom_kill"):
        setattr(events, key, source.events[key])


def _io(target: metrics_pb2.IOStat, source: agent_pb2.BlkioStats) -> None:
    target.SetInParent()
    entries: dict[tuple[int, int], metrics_pb2.IOEntry] = {}
    for entry in (*source.io_service_bytes_recursive, *source.io_serviced_recursive):
        key = (entry.major, entry.minor)
        if key not in entries:
            entries[key] = target.usage.add(major=entry.major, minor=entry.minor)
    for entry in source.io_service_bytes_recursive:
        _set(entries[entry.major, entry.minor], {"read": "rbytes", "write": "wbytes"}, entry)
    for entry in source.io_serviced_recursive:
        _set(entries[entry.major, entry.minor], {"read": "rios", "write": "wios"}, entry)


def _set(target: metrics_pb2.IOEntry, names: dict[str, str], entry: agent_pb2.BlkioStatsEntry) -> None:
    name = names.get(entry.op.lower())
    if name is not None:
        setattr(target, name, entry.value)
