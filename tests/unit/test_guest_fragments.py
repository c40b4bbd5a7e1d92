"""guest-kernel/fragments.py and the fragments themselves: what is asked of the kernel, and why."""

from __future__ import annotations

from pathlib import Path

import fragments
import pytest

from tests.framework.importgraph import REPOSITORY

OURS = REPOSITORY / "guest-kernel/fragments"
DEBIAN = [(6, 1), (6, 12)]
"""The kernels of Debian 12 and 13."""
# What issue and architecture ask of the guest, by the option that stands for it.
NEEDED = (
    "PVH VIRTIO_PCI VIRTIO_MMIO VIRTIO_BLK VIRTIO_NET VIRTIO_FS VIRTIO_VSOCKETS VIRTIO_CONSOLE HW_RANDOM_VIRTIO",
    "VIRTIO_BALLOON VIRTIO_MEM OVERLAY_FS EXT4_FS EROFS_FS TMPFS FUSE_FS UTS_NS IPC_NS PID_NS NET_NS USER_NS TIME_NS",
    "CGROUPS MEMCG CPUSETS CGROUP_PIDS CGROUP_SCHED CFS_BANDWIDTH BLK_CGROUP CGROUP_HUGETLB CGROUP_BPF BPF_SYSCALL",
    "SECCOMP SECCOMP_FILTER NETFILTER NF_TABLES IP_NF_IPTABLES HOTPLUG_PCI_PCIE MEMORY_HOTPLUG",
)


def asked(version: fragments.Version) -> dict[str, str]:
    """What our fragments ask of a kernel of this version."""
    return fragments.select(fragments.read(OURS), version)


def test_a_line_is_an_option_with_a_reason() -> None:
    """Values are y, n, numbers and quoted strings; prose and empty lines do not count."""
    text = '# prose\n\nCONFIG_A=y  # why a\nCONFIG_B=15  # why b\nCONFIG_C="-x"  # why c\nCONFIG_D=n if >=6.8  # why d\n'
    options = fragments.parse(text, "x.config")
    assert [(option.name, option.value, option.reason) for option in options] == [
        ("CONFIG_A", "y", "why a"),
        ("CONFIG_B", "15", "why b"),
        ("CONFIG_C", '"-x"', "why c"),
        ("CONFIG_D", "n", "why d"),
    ]
    assert options[3].where == "x.config:6"


@pytest.mark.parametrize("line", ["CONFIG_A=y", "CONFIG_A=m  # modules", "A=y  # why", "CONFIG_A = y  # why", "CONFIG_A=y # why"])
def test_a_bad_line_is_named(line: str) -> None:
    """An option without a reason, a module, a name that is none: refused with file and line."""
    with pytest.raises(fragments.FragmentError, match=r"bad\.config:2"):
        fragments.parse(f"CONFIG_Z=y  # fine\n{line}\n", "bad.config")


def test_options_of_other_versions_are_left_out() -> None:
    """`if <X.Y` and `if >=X.Y` choose by the kernel's version."""
    options = fragments.parse("CONFIG_OLD=y if <6.8  # a\nCONFIG_NEW=y if >=6.8  # b\nCONFIG_ALL=y  # c\n", "v")
    assert list(fragments.select(options, (6, 7))) == ["CONFIG_OLD", "CONFIG_ALL"]
    assert list(fragments.select(options, (6, 8))) == ["CONFIG_NEW", "CONFIG_ALL"]
    assert list(fragments.select(options, (7, 0))) == ["CONFIG_NEW", "CONFIG_ALL"]


def test_an_option_is_asked_for_once() -> None:
    """Two fragments that want the same option contradict each other, or one of them is needless."""
    options = fragments.parse("CONFIG_A=y  # one\n", "first") + fragments.parse("CONFIG_A=n  # two\n", "second")
    with pytest.raises(fragments.FragmentError, match=r"second:1: CONFIG_A was already asked for in first:1"):
        fragments.select(options, (6, 1))


def test_what_the_kernel_dropped_is_found() -> None:
    """The finished .config is compared with what was asked."""
    wanted = {"CONFIG_A": "y", "CONFIG_B": "n", "CONFIG_C": "15", "CONFIG_D": "n", "CONFIG_E": "y"}
    config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=17\nCONFIG_D=y\n"
    assert fragments.missing(wanted, config) == ["CONFIG_C=15 (is 17)", "CONFIG_D=n (is y)", "CONFIG_E=y (is n)"]
    assert fragments.missing(wanted, fragments.render(wanted)) == []


@pytest.mark.parametrize("version", DEBIAN)
def test_our_fragments_ask_for_what_a_guest_needs(version: fragments.Version) -> None:
    """Every part of the machine and everything that containers use is built in; modules are off."""
    options = asked(version)
    assert [name for name in " ".join(NEEDED).split() if options.get(f"CONFIG_{name}") != "y"] == []
    assert options["CONFIG_MODULES"] == "n"


def test_each_fragment_says_what_it_is_for() -> None:
    """The first line of a file is its concern."""
    assert [path.name for path in sorted(OURS.iterdir()) if not path.read_text().startswith("# ")] == []
    assert all(isinstance(path, Path) and path.suffix == ".config" for path in OURS.iterdir())
