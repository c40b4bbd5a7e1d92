"""agent/cgroups/stats.py and the file formats of agent/linux/cgroupfs.py, against a made-up cgroup."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cgroups import stats
from agent.linux import cgroupfs

FILES = {
    "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n"
    "nr_periods 7\nnr_throttled 3\nthrottled_usec 20\n",
    "memory.current": "4096\n",
    "memory.peak": "8192\n",
    "memory.max": "max\n",
    "memory.stat": "anon 100\nfile 200\nkernel 50\ninactive_file 30\npgfault 9\n",
    "memory.events": "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\n",
    "memory.swap.current": "10\n",
    "memory.swap.max": "0\n",
    "memory.swap.events": "fail 6\n",
    "pids.current": "5\n",
    "pids.max": "100\n",
    "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n253:7 rbytes=9\n",
}  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """A directory with the files of a cgroup."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return str(tmp_path)


def test_cpu_times_are_nanoseconds(directory: str) -> None:
    """v2's microseconds become v1's nanoseconds, throttling included."""
    cpu = stats.collect(directory).cpu_stats
    usage, throttling = cpu.cpu_usage, cpu.throttling_data
    assert (usage.total_usage, usage.usage_in_usermode, usage.usage_in_kernelmode) == (
        1500000,
        1000000,
        500000,
    )
    assert (throttling.periods, throttling.throttled_periods, throttling.throttled_time) == (7, 3, 20000)


def test_memory_carries_every_counter(directory: str) -> None:
    """What the shim needs for containerd's v2 metrics is there: usage, limits, memory.stat and the events.
    """
    memory = stats.collect(directory).memory_stats
    assert (memory.usage.usage, memory.usage.max_usage, memory.usage.limit) == (
        4096,
        8192,
        cgroupfs.UNLIMITED,
    )
    assert (memory.swap_usage.usage, memory.swap_usage.limit, memory.cache) == (10, 0, 200)
    assert memory.stats["inactive_file"] == 30
    assert memory.stats["pgfault"] == 9
    assert [memory.stats[f"events.{key}"] for key in ("low", "high", "max", "oom", "oom_kill")] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert memory.stats["swap.events.fail"] == 6


def test_pids_and_block_io(directory: str) -> None:
    """Process counts, and bytes and operations of each device."""
    found = stats.collect(directory)
    assert (found.pids_stats.current, found.pids_stats.limit) == (5, 100)
    entries = [(e.major, e.minor, e.op, e.value) for e in found.blkio_stats.io_service_bytes_recursive]
    assert entries == [(8, 0, "Read", 1), (8, 0, "Write", 2), (8, 0, "Discard", 5), (253, 7, "Read", 9)]
    assert [e.value for e in found.blkio_stats.io_serviced_recursive] == [3, 4, 6]


def test_missing_controllers_leave_zeros(tmp_path: Path) -> None:
    """A cgroup without controllers has no files, and that is no error."""
    found = stats.collect(str(tmp_path))
    assert (found.memory_stats.usage.usage, found.pids_stats.limit) == (0, 0)


@pytest.mark.parametrize(
    ("kibibytes", "name"), [(2048, "2MB"), (1 << 20, "1GB"), (64, "64KB"), (32768, "32MB")]
)
def test_page_size_names(kibibytes: int, name: str) -> None:
    """Sizes are spelt as the kernel spells them in file names."""
    assert stats.page_size_name(kibibytes) == name


def test_flat_and_nested_skip_what_they_do_not_know() -> None:
    """Lines of a newer kernel do not break the reading."""
    assert cgroupfs.flat("a 1\nb x\n\nc\nd 5") == {"a": 1, "d": 5}
    assert cgroupfs.nested("8:0 rbps=max wbps=5 odd\n") == {"8:0": {"rbps": cgroupfs.UNLIMITED, "wbps": 5}}


def test_enabling_controllers_goes_on_where_one_refuses(tmp_path: Path) -> None:
    """All missing controllers are asked for at once."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    cgroupfs.enable_controllers(str(tmp_path))
    assert (tmp_path / "cgroup.subtree_control").read_text().startswith("+cpu +pids")
