"""GetMetrics: the guest and the agent's process as Prometheus text.

Owns: the families' names, which are Kata's (docs/design/kata-2-0-metrics.md), since dashboards exist for
them. The shim adds the sandbox_id label. Called by agent/service.py; imported only when asked for.
"""

from __future__ import annotations

import os
import time

from agent.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable

    Sample = tuple[dict[str, str], int | float]
    Family = tuple[str, str, str, list[Sample]]  # name, kind, help, samples

_scrapes = [0]

_CPU_ITEMS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
_DISK_ITEMS = (
    "reads", "merged", "sectors_read", "time_reading", "writes", "writes_merged", "sectors_written",
    "time_writing", "in_progress", "time_in_progress", "weighted_time_in_progress", "discards",
    "discards_merged", "sectors_discarded", "time_discarding", "flushes", "time_flushing",
)  # fmt: skip
# Fields of /proc/PID/stat after the name, counted from 0: proc(5).
_STAT_FIELDS = (("utime", 11), ("stime", 12), ("cutime", 13), ("cstime", 14))
_NETWORK_ITEMS = (
    "recv_bytes", "recv_packets", "recv_errs", "recv_drop", "recv_fifo", "recv_frame", "recv_compressed",
    "recv_multicast", "sent_bytes", "sent_packets", "sent_errs", "sent_drop", "sent_fifo", "sent_colls",
    "sent_carrier", "sent_compressed",
)  # fmt: skip
# Names of /proc/meminfo whose form in Kata's metrics does not follow from their capitals.
_MEMORY_NAMES = {
    "AnonHugePages": "anon_hugepages", "Percpu": "per_cpu", "ShmemHugePages": "shmem_hugepages",
    "Committed_AS": "committed_as", "SUnreclaim": "s_unreclaim", "HardwareCorrupted": "hardware_corrupted",
    "ShmemPmdMapped": "shmem_pmd_mapped", "NFS_Unstable": "nfs_unstable",
}  # fmt: skip


def text(root: str = procfs.PROC) -> str:
    """All families in Prometheus' text format. Raises OSError only when /proc is not there."""
    _scrapes[0] += 1
    lines: list[str] = []
    for family in (*_guest(root), *_agent(root)):
        _write(lines, *family)
    return "\n".join(lines) + "\n"


def _write(lines: list[str], name: str, kind: str, words: str, samples: Iterable[Sample]) -> None:
    lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inside = ",".join([f'{key}="{_escape(text)}"' for key, text in labels.items()])
        lines.append(f"{name}{{{inside}}} {value}" if inside else f"{name} {value}")


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _by_item(values: dict[str, int]) -> list[Sample]:
    return [({"item": item}, value) for item, value in values.items()]


# --- the guest --------------------------------------------------------------------------------------------


def _guest(root: str) -> list[Family]:
    return [
        ("kata_guest_cpu_time", "gauge", "Guest CPU statistics.", _cpu_time(procfs.read("stat", root))),
        ("kata_guest_load", "gauge", "Guest system load.", _load(procfs.read("loadavg", root))),
        ("kata_guest_tasks", "gauge", "Guest tasks.", _tasks(root)),
        ("kata_guest_meminfo", "gauge", "Memory of the guest.", _memory(procfs.read("meminfo", root))),
        (
            "kata_guest_vm_stat",
            "gauge",
            "Guest virtual memory statistics.",
            _by_item(procfs.keyed(procfs.read("vmstat", root))),
        ),
        ("kata_guest_diskstat", "gauge", "Disks of the guest.", _disks(procfs.read("diskstats", root))),
        ("kata_guest_netdev_stat", "gauge", "Network of the guest.", _network(procfs.read("net/dev", root))),
    ]


def _cpu_time(stat: str) -> list[Sample]:
    """Clock ticks by CPU; the line without a number is their sum."""
    samples: list[Sample] = []
    for line in stat.splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu"):
            cpu = name[3:] or "total"
            samples += [
                ({"cpu": cpu, "item": item}, int(number))
                for item, number in zip(_CPU_ITEMS, numbers, strict=False)
            ]
    return samples


def _load(loadavg: str) -> list[Sample]:
    words = loadavg.split()
    return [
        ({"item": item}, float(word)) for item, word in zip(("load1", "load5", "load15"), words, strict=False)
    ]


def _tasks(root: str) -> list[Sample]:
    _, _, total = procfs.read("loadavg", root).split()[3].partition("/")
    most = procfs.read("sys/kernel/threads-max", root).strip()
    return [({"item": "cur"}, int(total)), ({"item": "max"}, int(most))]


def memory_item(name: str) -> str:
    """MemTotal -> mem_total, Active(anon) -> active_anon, DirectMap4k -> direct_map_4k."""
    if name in _MEMORY_NAMES:
        return _MEMORY_NAMES[name]
    if name.startswith("HugePages_"):
        return name.lower()
    if name.startswith("DirectMap"):
        return "direct_map_" + name[len("DirectMap") :]
    name = name.replace("(", "_").replace(")", "")
    pieces = [
        "_" + letter if letter.isupper() and index and name[index - 1] != "_" else letter
        for index, letter in enumerate(name)
    ]
    return "".join(pieces).lower()


def _memory(meminfo: str) -> list[Sample]:
    """Bytes, but for counts of huge pages."""
    samples: list[Sample] = []
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            size = 1024 if words[1:] == ["kB"] else 1
            samples.append(({"item": memory_item(name)}, int(words[0]) * size))
    return samples


def _disks(diskstats: str) -> list[Sample]:
    samples: list[Sample] = []
    for line in diskstats.splitlines():
        _, _, disk, *numbers = line.split()
        samples += [
            ({"disk": disk, "item": item}, int(number))
            for item, number in zip(_DISK_ITEMS, numbers, strict=False)
        ]
    return samples


def _network(net_dev: str) -> list[Sample]:
    samples: list[Sample] = []
    for line in net_dev.splitlines():
        name, colon, numbers = line.partition(":")
        if colon:
            samples += [
                ({"interface": name.strip(), "item": item}, int(number))
                for item, number in zip(_NETWORK_ITEMS, numbers.split(), strict=False)
            ]
    return samples


# --- the agent --------------------------------------------------------------------------------------------


def _agent(root: str) -> list[Family]:
    fields = procfs.read("self/stat", root).rpartition(")")[2].split()
    status = {key.lower(): value for key, value in procfs.keyed(procfs.read("self/status", root)).items()}
    items = {name: int(fields[index]) for name, index in _STAT_FIELDS}
    io = procfs.keyed(procfs.read("self/io", root))
    wanted = {
        key: n for key, n in status.items() if key.startswith(("vm", "rss", "hugetlb")) or "ctxt" in key
    }
    return [
        *_process(int(fields[19]), int(fields[20]), int(fields[21]), items, status.get("threads", 1), root),
        ("kata_agent_proc_stat", "gauge", "The agent's process statistics.", _by_item(items)),
        ("kata_agent_proc_status", "gauge", "The agent's process status.", _by_item(wanted)),
        ("kata_agent_io_stat", "gauge", "The agent's I/O statistics.", _by_item(io)),
    ]


def _process(
    started: int, virtual: int, resident: int, items: dict[str, int], threads: int, root: str
) -> list[Family]:
    """The single values of the agent; `started` in ticks after boot, `virtual` in bytes, `resident` in
    pages.
    """
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    seconds = (items["utime"] + items["stime"]) / ticks
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    single: list[tuple[str, str, str, int | float]] = [
        ("process_cpu_seconds_total", "counter", "CPU time of the agent in seconds.", seconds),
        ("process_open_fds", "gauge", "Open file descriptors.", len(os.listdir(f"{root}/self/fd"))),
        ("process_max_fds", "gauge", "Limit of open file descriptors.", _limit("Max open files", root)),
        ("process_resident_memory_bytes", "gauge", "Resident memory.", resident * page),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory.", virtual),
        ("process_start_time_seconds", "gauge", "Start time since the epoch.", int(boot + started / ticks)),
        ("scrape_count", "counter", "How often these metrics were read.", _scrapes[0]),
        ("threads", "gauge", "Threads of the agent.", threads),
        ("total_time", "gauge", "CPU time of the agent in seconds.", seconds),
        ("total_vm", "gauge", "Virtual memory of the agent.", virtual),
        ("total_rss", "gauge", "Resident memory of the agent.", resident * page),
    ]
    return [("kata_agent_" + name, kind, words, [({}, value)]) for name, kind, words, value in single]


def _limit(name: str, root: str) -> int:
    for line in procfs.read("self/limits", root).splitlines():
        if line.startswith(name):
            soft = line[len(name) :].split()[0]
            return int(soft) if soft.isdigit() else 0
    return 0
