"""What a container's root filesystem is made of: a disk, or directories.

Owns: reading that from an engine's mounts, or from the mount table where the engine has mounted it, and a name for
what directories hold. Must not know: how either reaches the guest. Called by disks.py, and by container.py before the
root filesystem is mounted on the host: a disk is not.

The type of a mount alone decides, never what its source turns out to be: an image without layers must not become the
host's disk (CVE-2026-24054).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from shim.sandbox.rootfs import RootfsMount

DISK_TYPES = ("ext4", "erofs", "xfs", "ext3", "ext2", "btrfs")
NOT_FOR_THE_GUEST = ("loop", "bind", "rbind")
# What an overlay's option says of the container's writing, not of what it shows.
WRITING = ("upperdir", "workdir", "volatile", "index", "nfs_export", "xino", "uuid", "rw", "ro", "relatime", "seclabel")


class Device(NamedTuple):
    """A file system on a block device or in an image file (host path); `options` are those of mount(8)."""

    source: str
    fstype: str
    options: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        """Whether nobody writes to it."""
        return self.fstype == "erofs" or "ro" in self.options


class Layers(NamedTuple):
    """Directories (host paths), the topmost first, below a directory that is written to ("": none).

    `others` are the overlay's further options. Without `lower` nothing is known of what it is made of.
    """

    lower: tuple[str, ...] = ()
    upper: str = ""
    others: tuple[str, ...] = ()


def device(mounts: Sequence[RootfsMount]) -> Device | None:
    """The disk that an engine's mounts of a root filesystem are; None if they are directories."""
    if len(mounts) != 1 or mounts[0].type not in DISK_TYPES or mounts[0].target:
        return None
    options = tuple(option for option in mounts[0].options if option not in NOT_FOR_THE_GUEST)
    return Device(mounts[0].source, mounts[0].type, options)


def directories(mounts: Sequence[RootfsMount], rootfs: str) -> Layers:
    """What lies under host directory `rootfs`, where `mounts` were mounted, or (without any) somebody else's."""
    if mounts:
        return of_options(mounts[-1].options) if mounts[-1].type == "overlay" else Layers()
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        options = overlay_at(os.path.realpath(rootfs), stream.read())
    return of_options(options) if options else Layers()


def overlay_at(path: str, mountinfo: str) -> tuple[str, ...]:
    """The options of the overlay that is mounted at `path`; () if none is on top there (proc(5), mountinfo)."""
    found: tuple[str, ...] = ()
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        if mount.split(" ")[4] == path:
            kind, _, options = filesystem.split(" ", 2)
            found = tuple(options.split(",")) if kind == "overlay" else ()
    return found


def of_options(options: Sequence[str]) -> Layers:
    """An overlay's options; nothing is known where they are not plain absolute paths."""
    values = {key: value for key, _, value in (option.partition("=") for option in options)}
    lower = tuple(values.get("lowerdir", "").split(":"))
    upper = values.get("upperdir", "")
    plain = all(path.startswith("/") and "\\" not in path for path in (*lower, upper or "/"))
    if not plain or any("+" in key for key in values):
        return Layers((), upper if upper.startswith("/") and "\\" not in upper else "")
    known = (*WRITING, "lowerdir")
    others = tuple(sorted(option for option in options if option.partition("=")[0] not in known))
    return Layers(lower, upper, others)


def is_written(layers: Layers) -> bool:
    """Whether the upper directory holds something."""
    if not layers.upper:
        return False
    with os.scandir(layers.upper) as entries:
        return next(entries, None) is not None


def backing(device: int) -> str:
    """The file (host path) behind a loop device, which is given by its number; "" if it is none (loop(4), sysfs)."""
    try:
        with open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop/backing_file", encoding="utf-8") as stream:
            return stream.read().rstrip("\n")
    except (OSError, UnicodeDecodeError):
        return ""


def key(layers: Layers) -> str:
    """A name for what is in `layers`; "" where that cannot be told, or may change.

    An engine never writes to a layer that is below another: path, file system, inode and the time of the last change of
    its top directory tell it from any other that was there. Where an image file is mounted on it (containerd's erofs
    snapshotter), that file does.
    """
    if not layers.lower or is_written(layers):
        return ""
    words = [*layers.others]
    for path in layers.lower:
        file = backing(os.stat(path).st_dev) if os.path.ismount(path) else path
        if not file:
            return ""
        status = os.stat(file)
        words.append(f"{file}\0{status.st_dev}\0{status.st_ino}\0{status.st_ctime_ns}")
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:24]
