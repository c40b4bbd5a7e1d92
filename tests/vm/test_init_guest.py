"""PID 1's duties, cgroups, seccomp, devices and storage in a real guest kernel; the checks are in
guest_checks.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.framework import bareguest
from tests.framework.bareguest import Device, Run

SCRIPT = Path(__file__).with_name("guest_checks.py")

# What needs disks, or a root that is not writable.
NOT_IN_AN_INITRAMFS = (
    "io_limits_of_a_disk", "devices_are_denied_by_the_kernel", "disk_by_pci_path", "plugged_disk_is_awaited",
    "plugged_share_is_awaited", "plugged_cpu_and_memory_come_into_use",
)  # fmt: skip

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


def names() -> list[str]:
    """The checks, read from their file without importing it."""
    lines = SCRIPT.read_text().splitlines()
    found = [
        line.removeprefix("def check_").partition("(")[0] for line in lines if line.startswith("def check_")
    ]
    return ["setup", *found]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's file tree."""
    lacking = bareguest.missing()
    if lacking:
        pytest.skip(lacking)
    tree = tmp_path_factory.mktemp("guest") / "root"
    bareguest.tree(tree, SCRIPT)
    return tree


def drive(name: str, image: Path) -> list[str]:
    """QEMU's option for a read-only disk without a device."""
    return ["-drive", f"if=none,id={name},file={image},format=raw,readonly=on"]


@pytest.fixture(scope="module")
def erofs_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A boot like ours: read-only erofs root on virtio-blk, a second disk, a port for a third."""
    directory = tmp_path_factory.mktemp("erofs")
    content = directory / "content"
    content.mkdir()
    (content / "hello").write_text("from a disk")
    disk = bareguest.erofs(content, directory / "disk.erofs")
    options = [
        *drive("root", bareguest.erofs(root, directory / "root.erofs")),
        *drive("second", disk),
        *drive("late", disk),
        "-device", "virtio-blk-pci,drive=root,addr=0x8",
        "-device", "virtio-blk-pci,drive=second,addr=0x10",
        "-device", "pcie-root-port,id=port1,addr=0x11,chassis=1",
        "-device", "pcie-root-port,id=port2,addr=0x12,chassis=2",
        "-chardev", f"socket,id=share,path={directory}/share.sock",
    ]  # fmt: skip
    plugs: dict[str, Device] = {
        "memory": {"driver": "pc-dimm", "id": "dimm", "memdev": "more"},
        "cpu": {"driver": "max-x86_64-cpu", "id": "cpu2", "socket-id": 2, "core-id": 0, "thread-id": 0},
        "late": {"driver": "virtio-blk-pci", "drive": "late", "bus": "port1", "id": "late"},
        "share": {
            "driver": "vhost-user-fs-pci",
            "chardev": "share",
            "tag": "kataShared",
            "bus": "port2",
            "id": "fs",
        },
    }
    with bareguest.shared(content, directory / "share.sock"):
        return bareguest.boot(options, "root=/dev/vda ro rootfstype=erofs init=/init", directory, 240, plugs)


@pytest.fixture(scope="module")
def initramfs_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A boot from an initramfs, as with the stock kernel."""
    directory = tmp_path_factory.mktemp("initramfs")
    archive = bareguest.initramfs(root, directory / "root.cpio")
    skip = ",".join(NOT_IN_AN_INITRAMFS)
    return bareguest.boot(["-initrd", str(archive)], f"rdinit=/init checks.skip={skip}", directory, 240, {})


def judge(run: Run, name: str) -> None:
    """Fail with the guest's own words."""
    outcome = run.checks.get(name, "was not reached")
    assert outcome.startswith("ok"), f"{name}: {outcome}\nconsole ends:\n{run.console[-3000:]}"


@pytest.mark.parametrize("name", names())
def test_in_a_guest_with_a_read_only_root(erofs_run: Run, name: str) -> None:
    """Each check of guest_checks.py holds in a guest that boots as ours do."""
    judge(erofs_run, name)


@pytest.mark.parametrize("name", [name for name in names() if name not in NOT_IN_AN_INITRAMFS])
def test_in_a_guest_on_an_initramfs(initramfs_run: Run, name: str) -> None:
    """The same on the kernel's first root, which pivot_root cannot leave without init's help."""
    judge(initramfs_run, name)


def test_poweroff_ends_the_machine(erofs_run: Run) -> None:
    """poweroff() makes QEMU exit by itself, well before the deadline, without a panic."""
    assert erofs_run.status == 0
    assert "panic" not in erofs_run.console.lower()
