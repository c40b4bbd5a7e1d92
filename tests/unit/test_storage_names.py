"""agent/storage: names of devices, sizes, and what is refused before anything is mounted."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from agent import storage
from agent.api import agent_pb2
from agent.errors import InvalidSpec, NotFound, Unsupported
from agent.linux import uevent
from agent.storage import devices, readahead


@pytest.mark.parametrize(
    ("path", "hops"),
    [("02", [(2, 0)]), ("02/1f", [(2, 0), (31, 0)]), ("1e.7/00.1", [(30, 7), (0, 1)])],
)
def test_pci_path(path: str, hops: list[tuple[int, int]]) -> None:
    """Slots are hexadecimal; the function is optional."""
    assert devices.parse_pci_path(path) == hops


@pytest.mark.parametrize("path", ["", "/", "20", "02/", "0x2", "02.8", "../..", "-1", "002"])
def test_what_is_no_pci_path(path: str) -> None:
    """Nothing else than slots gets into a sysfs path."""
    with pytest.raises(InvalidSpec):
        devices.parse_pci_path(path)


def test_pci_device_behind_a_bridge(tmp_path: Path) -> None:
    """The bus behind a bridge is read from the bridge."""
    bridge = tmp_path / "devices/pci0000:00/0000:00:02.0"
    (bridge / "pci_bus/0000:05").mkdir(parents=True)
    assert devices.pci_device([(2, 0), (1, 0)], str(tmp_path)) is None
    (bridge / "0000:05:01.0").mkdir()
    assert devices.pci_device([(2, 0), (1, 0)], str(tmp_path)) == str(bridge / "0000:05:01.0")
    assert devices.pci_device([(2, 0)], str(tmp_path)) == str(bridge)
    assert devices.pci_device([(3, 0)], str(tmp_path)) is None


def test_block_device_of_a_pci_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk below the virtio device is the one, once its node is in /dev."""
    disk = tmp_path / "devices/pci0000:00/0000:00:04.0/virtio3/block/vdq"
    disk.mkdir(parents=True)
    nodes: set[str] = set()
    monkeypatch.setattr(devices, "_is_block", lambda path: path in nodes)
    with pytest.raises(NotFound, match="04"):
        devices.block("04", 0, str(tmp_path))
    nodes.add("/dev/vdq")
    assert devices.block("04", 0, str(tmp_path)) == "/dev/vdq"


def test_scsi_disk_is_scanned_for_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every adapter is told to look; the disk with the address is taken, not one that ends alike."""
    (tmp_path / "class/scsi_host/host0").mkdir(parents=True)
    (tmp_path / "class/scsi_host/host0/scan").write_text("")
    for name, disk in (("0:0:0:1", "sda"), ("0:0:1:0", "sdb"), ("0:0:10:0", "sdc")):
        (tmp_path / f"bus/scsi/devices/{name}/block/{disk}").mkdir(parents=True)
    monkeypatch.setattr(devices, "_is_block", lambda _path: True)
    assert devices.scsi_block("1:0", 0, str(tmp_path)) == "/dev/sdb"
    assert (tmp_path / "class/scsi_host/host0/scan").read_text() == "0 1 0"
    for wrong in ("1", "1:", "a:0", "0:0:0:1"):
        with pytest.raises(InvalidSpec):
            devices.scsi_block(wrong, 0, str(tmp_path))


def test_missing_device_is_named_at_the_deadline() -> None:
    """The wait ends, and the error says for what."""
    start = time.monotonic()
    with pytest.raises(NotFound, match="/dev/hako-none"):
        devices.named("/dev/hako-none", 0.2)
    assert 0.19 < time.monotonic() - start < 2
    with pytest.raises(InvalidSpec):
        devices.named("/dev/../etc/passwd", 0)


def test_a_node_that_cannot_be_opened_yet_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel makes the node before it lets anybody open the disk: ENXIO means to wait for the next
    event.
    """
    answers = iter([errno.ENOENT, errno.ENXIO, 0])
    real = os.open

    def open_disk(path: str, flags: int, *more: int) -> int:
        number = next(answers) if path == "/dev/vdq" else 0
        if number:
            raise OSError(number, os.strerror(number), path)
        return real("/dev/null" if path == "/dev/vdq" else path, flags, *more)

    monkeypatch.setattr(os, "open", open_disk)
    monkeypatch.setattr(stat, "S_ISBLK", stat.S_ISCHR)
    assert devices.named("/dev/vdq", 0.1) == "/dev/vdq"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2M", 2 << 20),
        ("2Mi", 2 << 20),
        ("1024K", 1 << 20),
        ("1G", 1 << 30),
        ("4096", 4096),
        ("", 0),
        ("xM", 0),
    ],
)
def test_byte_counts(text: str, number: int) -> None:
    """Sizes as mount(8), the kernel and Kubernetes write them."""
    assert storage.byte_count(text) == number


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"driver": "image_guest_pull", "mount_point": "/x"}, Unsupported),
        ({"driver": "local", "mount_point": "relative"}, InvalidSpec),
        ({"driver": "ephemeral", "mount_point": "/x", "options": ["fsgid=a"]}, InvalidSpec),
        ({"driver": "local", "mount_point": "/x", "options": ["mode=0o9"]}, InvalidSpec),
        ({"driver": "blk", "mount_point": "/x", "source": "zz", "fstype": "ext4"}, InvalidSpec),
    ],
)
def test_what_cannot_be_mounted_is_refused(fields: dict[str, object], error: type[Exception]) -> None:
    """The refusal comes before any mount."""
    with pytest.raises(error):
        storage.mount(agent_pb2.Storage(**fields), 0)  # type: ignore[arg-type]


def test_handlers_are_listed_for_the_shim() -> None:
    """AgentDetails names every driver that has a name."""
    assert {"virtio-fs", "ephemeral", "local", "blk", "scsi", "overlayfs", "bind"} <= set(storage.names())
    assert "" not in storage.names()


def test_wait_is_by_events_and_not_by_looking_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between events nobody looks (other tests may cause some; polling would look dozens of times)."""
    looks: list[float] = []

    def look(_path: str) -> bool:
        looks.append(time.monotonic())
        return False

    monkeypatch.setattr(devices, "_is_block", look)
    with pytest.raises(NotFound):
        devices.named("/dev/hako-none", 0.3)
    assert 2 <= len(looks) <= 10


def test_a_change_before_the_socket_was_open_is_not_missed() -> None:
    """What appears between the first look and the opened event socket is found at once, without any event.
    """
    answers = iter([None, "there"])
    start = time.monotonic()
    assert uevent.wait_for(lambda: next(answers), ("nothing",), 5) == "there"
    assert time.monotonic() - start < 1


def test_read_ahead_of_a_share(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The file system's backing device is told; one that cannot be is logged, and nothing else."""
    device = os.stat(tmp_path).st_dev
    told = tmp_path / f"{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    readahead.widen(str(tmp_path), str(tmp_path))
    assert "read-ahead" in capfd.readouterr().err
    told.parent.mkdir()
    told.touch()
    readahead.widen(str(tmp_path), str(tmp_path))
    assert (told.read_text(), capfd.readouterr().err) == ("512", "")
