"""A cgroup's usage as Kata's CgroupStats.

Owns: which file goes into which field. Kata's message is made for cgroup v1; what v2 has beyond it stands
in `memory_stats.stats`: every key of memory.stat, and "events.KEY" for memory.events, "swap.peak" and
"swap.events.KEY". CPU times are nanoseconds as in v1 (v2's microseconds times 1000, so nothing is lost on
the way back). "max" is 2^64 - 1. HugetlbStats has no limit: `max_usage` carries it. Called by agent/cgroups
alone.
"""

from __future__ import annotations

from agent.api import agent_pb2
from agent.linux import cgroupfs

_NANOSECONDS = 1000


def collect(directory: str) -> agent_pb2.CgroupStats:
    """Everything that the cgroup's files say; what the kernel does not count stays 0."""
    stats = agent_pb2.CgroupStats()
    _cpu(stats.cpu_stats, directory)
    _memory(stats.memory_stats, directory)
    stats.pids_stats.current = _number(directory, "pids.current")
    stats.pids_stats.limit = _number(directory, "pids.max")
    _io(stats.blkio_stats, directory)
    _huge_pages(stats, directory)
    return stats


def _number(directory: str, name: str) -> int:
    return cgroupfs.number(cgroupfs.read_if_there(directory, name))


def _flat(directory: str, name: str) -> dict[str, int]:
    return cgroupfs.flat(cgroupfs.read_if_there(directory, name))


def _cpu(stats: agent_pb2.CpuStats, directory: str) -> None:
    values = _flat(directory, "cpu.stat")
    stats.cpu_usage.total_usage = values.get("usage_usec", 0) * _NANOSECONDS
    stats.cpu_usage.usage_in_usermode = values.get("user_usec", 0) * _NANOSECONDS
    stats.cpu_usage.usage_in_kernelmode = values.get("system_usec", 0) * _NANOSECONDS
    stats.throttling_data.periods = values.get("nr_periods", 0)
    stats.throttling_data.throttled_periods = values.get("nr_throttled", 0)
    stats.throttling_data.throttled_time = values.get("throttled_usec", 0) * _NANOSECONDS


def _memory(stats: agent_pb2.MemoryStats, directory: str) -> None:
    values, events = _flat(directory, "memory.stat"), _flat(directory, "memory.events")
    stats.use_hierarchy = True
    stats.cache = values.get("file", 0)
    stats.usage.usage = _number(directory, "memory.current")
    stats.usage.max_usage = _number(directory, "memory.peak")
    stats.usage.limit = _number(directory, "memory.max")
    stats.usage.failcnt = events.get("max", 0)
    stats.swap_usage.usage = _number(directory, "memory.swap.current")
    stats.swap_usage.max_usage = _number(directory, "memory.swap.peak")
    stats.swap_usage.limit = _number(directory, "memory.swap.max")
    stats.kernel_usage.usage = values.get("kernel", 0)
    for key, value in events.items():
        stats.events[key] = value
    for prefix, table in (
        ("", values),
        ("events.", events),
        ("swap.events.", _flat(directory, "memory.swap.events")),
    ):
        for key, value in table.items():
            stats.stats[prefix + key] = value


def _io(stats: agent_pb2.BlkioStats, directory: str) -> None:
    bytes_of, operations = stats.io_service_bytes_recursive, stats.io_serviced_recursive
    for device, values in cgroupfs.nested(cgroupfs.read_if_there(directory, "io.stat")).items():
        major, _, minor = device.partition(":")
        if not (major.isdigit() and minor.isdigit()):
            continue
        for op, letter in (("Read", "r"), ("Write", "w"), ("Discard", "d")):
            for field, key in ((bytes_of, f"{letter}bytes"), (operations, f"{letter}ios")):
                if key in values:
                    field.add(major=int(major), minor=int(minor), op=op, value=values[key])


def _huge_pages(stats: agent_pb2.CgroupStats, directory: str) -> None:
    for size in _page_sizes():
        current = cgroupfs.read_if_there(directory, f"hugetlb.{size}.current")
        if current is None:
            continue
        entry = stats.hugetlb_stats[size]
        entry.usage = cgroupfs.number(current)
        entry.max_usage = _number(directory, f"hugetlb.{size}.max")
        entry.failcnt = _flat(directory, f"hugetlb.{size}.events").get("max", 0)


def _page_sizes() -> list[str]:
    """The machine's huge page sizes in the kernel's spelling for cgroup files (2MB, 1GB)."""
    import os

    try:
        names = os.listdir("/sys/kernel/mm/hugepages")
    except FileNotFoundError:
        return []
    return [page_size_name(int(name[len("hugepages-") : -len("kB")])) for name in sorted(names)]


def page_size_name(kibibytes: int) -> str:
    """2048 -> 2MB, as the kernel's mem_fmt() spells it."""
    for unit, size in (("GB", 1 << 20), ("MB", 1 << 10)):
        if kibibytes >= size:
            return f"{kibibytes // size}{unit}"
    return f"{kibibytes}KB"
