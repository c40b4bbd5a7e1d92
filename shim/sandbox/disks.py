"""Containers' files without a shared file system: root filesystems as disks, small volumes as copies.

Owns: which disks a VM has for whom, the storages with which the guest mounts them. Must not know: how an image is
packed or a file read (share/erofs.py, share/copies.py), what a root is made of (layers.py), what becomes of a volume
(volumes.py). Called by container.py through placement.Files.

Containers with the same image share one disk. A read-only one gets an overlay in the guest, whose upper directory is
a tmpfs: it goes with the container, and what is in it counts as the container's memory. A writable one (an engine's
block device) is the root itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.api import agent_pb2
from shim.errors import HakoError, Unsupported
from shim.hypervisor.base import Disk, Plugged, Vm
from shim.sandbox import layers, volumes
from shim.sandbox.layers import Device
from shim.sandbox.placement import Placed, Wanted
from shim.share import copies, erofs
from shim.share.tree import GUEST_ROOT
from shim.trace import Span

if TYPE_CHECKING:
    from shim.agent_client import AgentClient
    from shim.config import ShareConfig
    from shim.oci.spec import Spec

DISKS = "/run/hako/disks"  # in the guest: one mount point per disk
OF_CONTAINER = "io.hako.lifetime=container"  # agent/sandbox_storages.py
PIECE = 1 << 20  # bytes of one CopyFile request (kata.md 2.5)
SERIAL = 20  # characters of a virtio disk's serial number


class _Held:
    """A disk in the VM, and the ids of the containers that use it."""

    def __init__(self, plugged: Plugged, device: Device) -> None:
        self.plugged = plugged
        self.read_only = device.read_only
        self.storage = _block(plugged, device)
        self.users: set[str] = set()


class DiskFiles:
    """See the module. Thread-safe; implements placement.Files."""

    def __init__(self, vm: Vm, agent: AgentClient, config: ShareConfig, log: Callable[[str, str], None]) -> None:
        self._vm = vm
        self._agent = agent
        self._config = config
        self._log = log
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}

    @property
    def unsaved(self) -> bool:
        """Only a file system on a writable disk is worth it."""
        with self._lock:
            return any(not held.read_only for held in self._held.values())

    def sandbox_storage(self) -> agent_pb2.Storage:
        """Memory for what is copied into the guest."""
        options = ["nodev", "mode=0755", "size=50%"]
        return agent_pb2.Storage(driver="ephemeral", source="hako", fstype="tmpfs", options=options, mount_point=GUEST_ROOT)

    def place(self, wanted: Wanted) -> Placed:
        """See placement.Files. Raises Unsupported for a volume that needs a shared file system."""
        planned = volumes.plan(wanted.spec, wanted.plans)  # refuses before anything is plugged
        root, storages = self._root(wanted)
        sources = {}
        for volume in planned:
            sources[volume.at], needed = self._volume(wanted.container_id, volume)
            storages += needed
        return Placed(root, sources, storages)

    def remove(self, container_id: str, *, machine_ends: bool = False) -> None:
        """See placement.Files. A disk that the guest does not let go of stays, and is told."""
        with self._lock:
            for name, held in list(self._held.items()):
                held.users.discard(container_id)
                if not held.users and not machine_ends:
                    self._unplug(name, held)

    def _unplug(self, name: str, held: _Held) -> None:
        del self._held[name]
        try:
            self._vm.unplug(held.plugged.id)
        except HakoError as exc:
            self._log("warn", f"disk {held.plugged.id}: {exc}")

    def _root(self, wanted: Wanted) -> tuple[str, list[agent_pb2.Storage]]:
        """Guest path of the root, and what is mounted for it."""
        device = layers.device(wanted.rootfs_mounts)
        disk = self._device(wanted.container_id, device) if device is not None else self._packed(wanted)
        if device is not None and not device.read_only:
            return disk.mount_point, [disk]
        upper, root = (f"{GUEST_ROOT}/{wanted.container_id}/{name}" for name in ("upper", "rootfs"))
        return root, [disk, _memory(upper, wanted.spec), _overlay(disk.mount_point, upper, root)]

    def _packed(self, wanted: Wanted) -> agent_pb2.Storage:
        """The directories under the root as a disk."""
        try:
            found = layers.directories(wanted.rootfs_mounts, wanted.rootfs)
            key = layers.key(found)
        except OSError as exc:
            raise HakoError(exc.strerror or str(exc), step=erofs.STEP, object=exc.filename or wanted.rootfs) from exc
        with Span("pack", wanted.container_id):
            image = erofs.packed(wanted.rootfs, key, self._config.packed_images)
        try:
            name = key or f"own-{wanted.container_id}"
            return self._disk(wanted.container_id, name, f"/proc/self/fd/{image}", Device("", "erofs", ("ro",)))
        finally:
            os.close(image)

    def _device(self, container_id: str, device: Device) -> agent_pb2.Storage:
        return self._disk(container_id, os.path.realpath(device.source), device.source, device)

    def _disk(self, container_id: str, name: str, path: str, device: Device) -> agent_pb2.Storage:
        """The storage of a disk, which is plugged if the VM has it not; `path`: host path.

        It is plugged and mounted once: two mounts of one file system do not see each other's blocks.
        """
        with self._lock:
            held = self._held.get(name)
            if held is None:
                with Span("plug", container_id):
                    plugged = self._vm.plug(Disk(path, device.read_only, os.path.basename(name)[:SERIAL]))
                held = self._held[name] = _Held(plugged, device)
            if held.read_only and not device.read_only:
                raise Unsupported("another container of the pod has it read-only", step="plug a disk", object=path)
            held.users.add(container_id)
            return held.storage

    def _volume(self, container_id: str, volume: volumes.Volume) -> tuple[str, list[agent_pb2.Storage]]:
        """Guest path of a volume's source, and what is mounted for it."""
        if volume.device is not None:
            disk = self._device(container_id, volume.device)
            return disk.mount_point, [disk]
        if volume.empty:
            place = f"{GUEST_ROOT}/{volumes.EMPTY_DIRS}/{volume.empty}"
            return place, [agent_pb2.Storage(driver="local", source="local", options=["mode=0777"], mount_point=place)]
        place = f"{GUEST_ROOT}/{container_id}/{volume.at}"
        try:
            entries = copies.read(volume.source, self._config.copy_limit << 20)
        except copies.TooMuch as exc:
            raise volumes.refused(volume, exc.message, "make [share] copy_limit larger") from exc
        except copies.NotCopied as exc:
            remedy = "a device is plugged where the mount has its file system's type"
            raise volumes.refused(volume, f"{exc.object} {exc.message}", remedy) from exc
        with Span(f"copy {volume.destination}", container_id):
            for entry in entries:
                self._copy(f"{place}/{entry.path}" if entry.path else place, entry)
        return place, []

    def _copy(self, path: str, entry: copies.Entry) -> None:
        for offset in range(0, max(1, len(entry.data)), PIECE):
            request = agent_pb2.CopyFileRequest(
                path=path,
                file_size=len(entry.data),
                file_mode=entry.mode,
                dir_mode=0o755,
                uid=entry.uid,
                gid=entry.gid,
                offset=offset,
                data=entry.data[offset : offset + PIECE],
            )
            self._agent.do("CopyFile", request)


def _block(plugged: Plugged, device: Device) -> agent_pb2.Storage:
    options = list(device.options) or ["rw"]
    place = f"{DISKS}/{plugged.id}"
    return agent_pb2.Storage(driver="blk", source=plugged.pci_path, fstype=device.fstype, options=options, mount_point=place)


def _memory(upper: str, spec: Spec) -> agent_pb2.Storage:
    """Where the container writes: as much as its memory limit lets it, or half of the VM's memory."""
    resources = spec.linux.resources if spec.linux else None
    limit = resources.memory.limit if resources and resources.memory else None
    size = str(limit) if limit and limit > 0 else "50%"
    return agent_pb2.Storage(
        driver="ephemeral", driver_options=[OF_CONTAINER], source="upper", fstype="tmpfs",
        options=["nodev", "mode=0700", f"size={size}"], mount_point=upper,
    )  # fmt: skip


def _overlay(lower: str, upper: str, root: str) -> agent_pb2.Storage:
    make = "io.katacontainers.volume.overlayfs.create_directory="
    return agent_pb2.Storage(
        driver="overlayfs", driver_options=[f"{make}{upper}/{name}" for name in ("upper", "work")], source="overlay",
        fstype="overlay", options=["nodev", f"lowerdir={lower}", f"upperdir={upper}/upper", f"workdir={upper}/work"],
        mount_point=root,
    )  # fmt: skip
