"""shim/sandbox/disks.py: which disks are in the VM for whom; VMM and agent are played."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from shim.config import ShareConfig
from shim.errors import HakoError, Timeout, Unsupported
from shim.hypervisor.base import Disk, Plugged
from shim.oci import mounts
from shim.oci.spec import Linux, Memory, Mount, Resources, Spec
from shim.sandbox.disks import DiskFiles
from shim.sandbox.placement import Placed, Wanted
from shim.sandbox.rootfs import RootfsMount

needs_mkfs = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="no mkfs.erofs: apt-get install erofs-utils")


class Machine:
    """A VMM and an agent that remember what they were asked."""

    def __init__(self) -> None:
        self.disks: dict[str, Disk] = {}
        self.copied: list[Any] = []
        self.said: list[str] = []
        self.stuck = False
        self._number = 0

    def plug(self, disk: Disk) -> Plugged:
        """As Vm.plug; the disk can be opened now, later it need not be."""
        os.close(os.open(disk.path, os.O_RDONLY))
        name = f"plug{self._number}"
        self._number += 1
        self.disks[name] = disk
        return Plugged(name, f"10.{self._number}/00")

    def unplug(self, device: str) -> None:
        """As Vm.unplug."""
        if self.stuck:
            raise Timeout("the guest does not release the device", step="unplug", object=device)
        del self.disks[device]

    def do(self, method: str, request: Any) -> None:
        """As AgentClient.do."""
        assert method == "CopyFile"
        self.copied.append(request)

    def files(self) -> DiskFiles:
        """What is tested."""
        return DiskFiles(self, self, ShareConfig(), lambda level, message: self.said.append(message))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed images of the test's own."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def machine() -> Machine:
    """One VM."""
    return Machine()


def image(directory: Path, name: str) -> Path:
    """What stands for a snapshotter's disk."""
    path = directory / name
    path.write_bytes(bytes(512))
    return path


def wanted(name: str, root: RootfsMount, *volumes: Mount, limit: int | None = None) -> Wanted:
    """A container's files."""
    resources = Resources(memory=Memory(limit=limit))
    spec = Spec(oci_version="1.0.2", mounts=volumes, linux=Linux(resources=resources))
    return Wanted(name, spec, mounts.plan(spec, "/bundle"), "/bundle/rootfs", (root,))


def drivers(placed: Placed) -> list[str]:
    """The storages' drivers, in order."""
    return [storage.driver for storage in placed.storages]


def test_a_writable_device_is_the_root_itself(machine: Machine, tmp_path: Path) -> None:
    """Mounted with the engine's options, found by its place on the bus; gone with its container."""
    files = machine.files()
    placed = files.place(wanted("c1", RootfsMount("ext4", str(image(tmp_path, "snap")), ("loop", "discard"))))
    assert drivers(placed) == ["blk"] and placed.rootfs == placed.storages[0].mount_point
    assert (placed.storages[0].source, list(placed.storages[0].options)) == ("10.1/00", ["discard"])
    assert machine.disks["plug0"] == Disk(str(tmp_path / "snap"), read_only=False, id="snap")
    files.remove("c1")
    assert machine.disks == {}


def test_a_read_only_one_is_below_memory(machine: Machine, tmp_path: Path) -> None:
    """As much memory as the container's limit; two containers share the disk, each has its own view."""
    files, root = machine.files(), RootfsMount("erofs", str(image(tmp_path, "layer")), ("ro",))
    first, second = files.place(wanted("c1", root, limit=1 << 20)), files.place(wanted("c2", root))
    assert drivers(first) == ["blk", "ephemeral", "overlayfs"] and len(machine.disks) == 1
    assert "size=1048576" in first.storages[1].options and "size=50%" in second.storages[1].options
    assert first.rootfs != second.rootfs and first.storages[0] == second.storages[0]
    files.remove("c1")
    assert len(machine.disks) == 1
    files.remove("c2")
    assert machine.disks == {}


def test_a_file_system_is_mounted_once(machine: Machine, tmp_path: Path) -> None:
    """Whoever has it read-only sees what the other writes; a reader's disk does not become writable."""
    root = RootfsMount("erofs", str(image(tmp_path, "layer")), ())
    device = str(image(tmp_path, "data"))
    reader, writer = Mount("/d", device, "ext4", ("ro",)), Mount("/d", device, "ext4", ())
    files = machine.files()
    shared = [files.place(wanted(name, root, volume)).sources for name, volume in (("c1", writer), ("c2", reader))]
    assert shared[0] == shared[1] and len(machine.disks) == 2
    other = machine.files()
    other.place(wanted("c3", root, reader))
    with pytest.raises(Unsupported, match="another container of the pod has it read-only"):
        other.place(wanted("c4", root, writer))


def test_what_cannot_be_had_takes_no_port(machine: Machine, tmp_path: Path) -> None:
    """A volume is refused before anything is plugged; one that is too big leaves only what `remove` takes back."""
    files, root = machine.files(), RootfsMount("erofs", str(image(tmp_path, "layer")), ())
    with pytest.raises(Unsupported, match="volume /v"):
        files.place(wanted("c1", root, Mount("/v", "/srv", "bind", ())))
    assert machine.disks == {}
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Unsupported, match=r"volume /v: .*pipe is neither a file"):
        files.place(wanted("c1", root, Mount("/v", str(tmp_path / "pipe"), "bind", ("ro",))))
    files.remove("c1")
    assert machine.disks == {}


def test_copies_go_in_pieces(machine: Machine, tmp_path: Path) -> None:
    """Each file below the container's place in the guest, with owner and mode."""
    (tmp_path / "dir").mkdir(mode=0o750)
    (tmp_path / "dir/key").write_text("value")
    root = RootfsMount("erofs", str(image(tmp_path, "layer")), ())
    placed = machine.files().place(wanted("c1", root, Mount("/v", str(tmp_path / "dir"), "bind", ("ro",))))
    place = placed.sources[0]
    assert place.endswith("/c1/0")
    assert [(request.path, request.data) for request in machine.copied] == [(place, b""), (f"{place}/key", b"value")]
    assert machine.copied[0].file_mode & 0o777 == 0o750


def test_an_end_of_the_machine_takes_no_disk_out(machine: Machine, tmp_path: Path) -> None:
    """And a disk that the guest holds is told, not raised: the container goes."""
    files, root = machine.files(), RootfsMount("ext4", str(image(tmp_path, "snap")), ())
    files.place(wanted("c1", root))
    files.remove("c1", machine_ends=True)
    assert len(machine.disks) == 1
    files.place(wanted("c2", root))
    machine.stuck = True
    files.remove("c2")
    assert "does not release" in machine.said[0]


@needs_mkfs
def test_directories_are_packed_and_the_host_s_file_is_let_go(machine: Machine, tmp_path: Path) -> None:
    """The VMM has opened the image; we keep no descriptor of it."""
    (tmp_path / "root").mkdir()
    request = wanted("c1", RootfsMount("bind", str(tmp_path / "root"), ()))._replace(rootfs=str(tmp_path / "root"))
    placed = machine.files().place(request)
    assert drivers(placed) == ["blk", "ephemeral", "overlayfs"] and machine.disks["plug0"].read_only
    before = os.listdir("/proc/self/fd")
    machine.files().place(request)
    assert len(machine.disks) == 2 and len(os.listdir("/proc/self/fd")) == len(before)
    with pytest.raises(HakoError, match=r"mkfs\.erofs"):
        machine.files().place(request._replace(rootfs=str(tmp_path / "none")))
