"""PID 1's duties, cgroups, seccomp, devices and storage in a real guest kernel; the checks are in
guest_checks.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.framework import bareguest, checks
from tests.framework.bareguest import Device, Run

SCRIPT = Path(__file__).with_name("guest_checks.py")

# What needs disks, or devices to be plugged, which only the guest with an erofs root has.
ONLY_EROFS = (
    "io_limits_of_a_disk", "devices_are_denied_by_the_kernel", "disk_by_pci_path", "plugged_disk_is_awaited",
    "plugged_share_is_awaited", "plugged_memory_comes_into_use", "plugged_cpu_comes_into_use",
)  # fmt: skip
GUESTS = ("erofs", "initramfs", "stock")

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guests' file tree."""
    lacking = bareguest.missing()
    if lacking:
        pytest.skip(lacking)
    tree = tmp_path_factory.mktemp("guest") / "root"
    bareguest.tree(tree, SCRIPT, checks)
    return tree


def drive(name: str, image: Path) -> list[str]:
    """QEMU's option for a read-only disk without a device."""
    return ["-drive", f"if=none,id={name},file={image},format=raw,readonly=on"]


def boot_erofs(root: Path, directory: Path) -> Run:
    """A boot like ours: read-only erofs root on virtio-blk, a second disk, ports for what is plugged."""
    kernel = bareguest.need_kernel()
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
        return bareguest.boot(
            kernel, options, "root=/dev/vda ro rootfstype=erofs init=/init", directory, plugs
        )


def boot_initramfs(root: Path, directory: Path) -> Run:
    """Our kernel on its first root, which pivot_root cannot leave without init's help."""
    kernel = bareguest.need_kernel()
    archive = bareguest.initramfs(root, directory / "root.cpio")
    return bareguest.boot(kernel, ["-initrd", str(archive)], f"rdinit=/init {skipping()}", directory, {})


def boot_stock(root: Path, directory: Path) -> Run:
    """The distribution's kernel, whose drivers, the console's too, are modules that init has to load."""
    kernel, modules = bareguest.stock_kernel()
    archive = directory / "both.cpio"
    # The kernel unpacks archives one after the other: the modules and their list, then the test's tree over
    # it.
    archive.write_bytes(
        modules.read_bytes() + bareguest.initramfs(root, directory / "root.cpio").read_bytes()
    )
    return bareguest.boot(kernel, ["-initrd", str(archive)], f"rdinit=/init {skipping()}", directory, {})


def skipping() -> str:
    """The kernel parameter that leaves out what needs disks."""
    return f"checks.skip={','.join(ONLY_EROFS)}"


BOOTS = {"erofs": boot_erofs, "initramfs": boot_initramfs, "stock": boot_stock}


@pytest.fixture(scope="module")
def run_of(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """What the guest of a kind said; each runs once for all its checks."""
    done: dict[str, Run] = {}

    def get(guest: str) -> Run:
        if guest not in done:
            done[guest] = BOOTS[guest](root, tmp_path_factory.mktemp(guest))
        return done[guest]

    return get


def cases() -> list[tuple[str, str]]:
    """(guest, check) for all that can be checked there."""
    names = ["setup", *checks.names(SCRIPT)]
    return [(guest, name) for guest in GUESTS for name in names if guest == "erofs" or name not in ONLY_EROFS]


@pytest.mark.parametrize(("guest", "name"), cases())
def test_in_a_guest(run_of: Callable[[str], Run], guest: str, name: str) -> None:
    """Each check of guest_checks.py holds: in a guest that boots as ours do, on an initramfs, with a stock
    kernel.
    """
    run = run_of(guest)
    outcome = run.checks.get(name, "was not reached")
    if outcome.startswith("skip"):
        pytest.skip(outcome.removeprefix("skip "))
    end = f"QEMU's status {run.status}, {run.errors or 'no words'}; the console ends:\n{run.console[-3000:]}"
    assert outcome.startswith("ok"), f"{name}: {outcome}\n{end}"


@pytest.mark.parametrize("guest", GUESTS)
def test_poweroff_ends_the_machine(run_of: Callable[[str], Run], guest: str) -> None:
    """poweroff() makes QEMU exit by itself, well before the deadline, without a panic."""
    run = run_of(guest)
    assert run.status == 0
    assert "kernel panic" not in run.console.lower()
