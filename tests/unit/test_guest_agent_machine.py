"""agent/guest: facts, hot-plug and metrics, against made-up trees and the host's /proc."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from agent import guest
from agent.api import agent_pb2, csi_pb2
from agent.errors import DeadlineExceeded, InvalidSpec, StepError
from agent.guest import metrics
from agent.linux import procfs


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A sysfs with two online CPUs, one offline CPU and one offline piece of memory."""
    for number, state in (("0", None), ("1", "1"), ("2", "0")):
        cpu = tmp_path / "cpu" / f"cpu{number}"
        cpu.mkdir(parents=True)
        if state is not None:
            (cpu / "online").write_text(state + "\n")
    (tmp_path / "cpu" / "cpufreq").mkdir()
    for number, state in (("0", "online"), ("32", "offline")):
        block = tmp_path / "memory" / f"memory{number}"
        block.mkdir(parents=True)
        (block / "state").write_text(state + "\n")
    (tmp_path / "memory" / "block_size_bytes").write_text("8000000\n")
    return tmp_path


def test_details_say_what_is_asked(machine: Path) -> None:
    """The block size is read as hexadecimal; what is not asked stays 0."""
    agent = agent_pb2.AgentDetails(version="1")
    request = agent_pb2.GuestDetailsRequest(mem_block_size=True, mem_hotplug_probe=True)
    answer = guest.details(request, agent, str(machine))
    assert (answer.mem_block_size_bytes, answer.support_mem_hotplug_probe) == (128 << 20, False)
    assert answer.agent_details.version == "1"
    assert guest.details(agent_pb2.GuestDetailsRequest(), agent, str(machine)).mem_block_size_bytes == 0
    assert guest.memory_block_size(str(machine / "nothing")) == 0


def test_online_brings_up_cpus_and_memory(machine: Path) -> None:
    """Whatever is off is brought up, CPUs first."""
    guest.online(wait=True, cpus=1, cpu_only=False, root=str(machine))
    assert (machine / "cpu/cpu2/online").read_text() == "1"
    assert (machine / "memory/memory32/state").read_text() == "online"


def test_online_leaves_memory_where_only_cpus_are_asked(machine: Path) -> None:
    """cpu_only leaves memory as it is."""
    guest.online(wait=False, cpus=0, cpu_only=True, root=str(machine))
    assert (machine / "memory/memory32/state").read_text() == "offline\n"
    assert (machine / "cpu/cpu2/online").read_text() == "1"


def test_online_gives_up_at_its_deadline(machine: Path) -> None:
    """More CPUs than ever come: the deadline is kept and the error says how many came."""
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="1 came up"):
        guest.online(wait=True, cpus=3, cpu_only=True, seconds=0.2, root=str(machine))
    assert time.monotonic() - start < 2


def test_probe_writes_hexadecimal_addresses(machine: Path) -> None:
    """Each address is one write."""
    (machine / "memory" / "probe").write_text("")
    guest.probe_memory([0x100000000], str(machine))
    assert (machine / "memory" / "probe").read_text() == "0x100000000"


def test_volume_stats_count_bytes_and_inodes(tmp_path: Path) -> None:
    """Two usages, in bytes and in inodes, as statvfs says."""
    usage = {entry.unit: entry for entry in guest.volume_stats(str(tmp_path)).usage}
    info = os.statvfs(tmp_path)
    assert usage[csi_pb2.VolumeUsage.BYTES].total == info.f_blocks * info.f_frsize
    assert usage[csi_pb2.VolumeUsage.INODES].total == info.f_files
    with pytest.raises(StepError, match="nothing"):
        guest.volume_stats(str(tmp_path / "nothing"))


@pytest.mark.parametrize("data", [b"", b"x" * 65537])
def test_a_seed_of_no_or_absurd_length_is_refused(data: bytes) -> None:
    """An empty seed would claim entropy that is not there."""
    with pytest.raises(InvalidSpec):
        guest.reseed(data)


def test_a_time_that_is_none_is_refused() -> None:
    """Microseconds beyond a second are a mistake of the caller."""
    with pytest.raises(InvalidSpec):
        guest.set_clock(5, 1_000_000)


def test_swap_errors_name_the_path() -> None:
    """What the kernel refuses says which file."""

    def refuse(path: str) -> None:
        raise OSError(22, "swapon", path)

    with pytest.raises(StepError, match="/swapfile"):
        guest.add_swap("/swapfile", refuse)


# --- metrics ----------------------------------------------------------------------------------------------

SAMPLE = re.compile(r'^[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? -?[0-9.e+]+$')


def test_metrics_are_valid_prometheus_text() -> None:
    """Every line is a comment or a sample, and each family is announced once before its samples."""
    lines = metrics.text().splitlines()
    announced = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(announced) == len(set(announced))
    samples = [line for line in lines if not line.startswith("#")]
    assert [line for line in samples if not SAMPLE.match(line)] == []
    assert {re.split(r"[{ ]", line)[0] for line in samples} <= set(announced)


def test_metrics_have_katas_families() -> None:
    """The names that dashboards for Kata query."""
    text = metrics.text()
    for name in (
        'kata_guest_cpu_time{cpu="total",item="user"}',
        'kata_guest_cpu_time{cpu="0",item="idle"}',
        'kata_guest_meminfo{item="mem_total"}',
        'kata_guest_netdev_stat{interface="lo",item="recv_bytes"}',
        'kata_guest_load{item="load1"}',
        'kata_guest_tasks{item="cur"}',
        'kata_guest_vm_stat{item="pgfault"}',
        "kata_agent_total_rss",
        'kata_agent_proc_status{item="vmrss"}',
        'kata_agent_io_stat{item="rchar"}',
    ):
        assert f"\n{name} " in text, name


def test_metrics_count_memory_in_bytes() -> None:
    """meminfo's kB are bytes in the metric."""
    found = re.search(r'kata_guest_meminfo\{item="mem_total"\} (\d+)', metrics.text())
    assert found is not None
    assert int(found[1]) == procfs.keyed(procfs.read("meminfo"))["MemTotal"] * 1024


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("MemTotal", "mem_total"),
        ("Active(anon)", "active_anon"),
        ("AnonHugePages", "anon_hugepages"),
        ("HugePages_Total", "hugepages_total"),
        ("DirectMap4k", "direct_map_4k"),
        ("KReclaimable", "k_reclaimable"),
        ("SUnreclaim", "s_unreclaim"),
        ("SReclaimable", "s_reclaimable"),
        ("Committed_AS", "committed_as"),
        ("Percpu", "per_cpu"),
        ("VmallocUsed", "vmalloc_used"),
        ("CommitLimit", "commit_limit"),
        ("KernelStack", "kernel_stack"),
        ("Hugepagesize", "hugepagesize"),
    ],
)
def test_names_of_memory_items(name: str, item: str) -> None:
    """The kernel's names in the spelling of Kata's metrics."""
    assert metrics.memory_item(name) == item


# --- formats of /proc -------------------------------------------------------------------------------------


def test_kernel_parameters(tmp_path: Path) -> None:
    """Values may hold "="; a bare word has none; the last of equal names wins."""
    (tmp_path / "cmdline").write_text("quiet a=1 root=UUID=5 a=2\n")
    assert procfs.kernel_parameters(str(tmp_path)) == {"quiet": "", "a": "2", "root": "UUID=5"}


MOUNTINFO = """\
22 1 0:20 / / ro,relatime - erofs /dev/vda ro
23 22 0:21 / /run rw,nosuid shared:5 master:1 - tmpfs tmpfs rw
24 23 0:22 /sub /run/a\\040b rw - virtiofs kataShared rw
25 24 0:23 / /run/a\\040b/c rw - tmpfs none rw
broken line
"""


def test_mountinfo_is_parsed_with_optional_fields_and_escapes() -> None:
    """Optional fields before the dash vary in number; spaces are written in octal."""
    found = [(m.point, m.fstype, m.root) for m in procfs.parse_mountinfo(MOUNTINFO)]
    assert found == [
        ("/", "erofs", "/"),
        ("/run", "tmpfs", "/"),
        ("/run/a b", "virtiofs", "/sub"),
        ("/run/a b/c", "tmpfs", "/"),
    ]


def test_mount_points_below_come_deepest_last_mounted_first(tmp_path: Path) -> None:
    """The order is the one to unmount in, and a sibling with the same beginning is not below."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text(MOUNTINFO)
    assert procfs.mount_points_below("/run/a b", str(tmp_path)) == ["/run/a b/c", "/run/a b"]
    assert procfs.mount_points_below("/run/a", str(tmp_path)) == []
