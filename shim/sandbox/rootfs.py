"""The container's root filesystem on the host: what containerd asks to be mounted at BUNDLE/rootfs.

Owns: the mounts of CreateTaskRequest.rootfs, in order, and their end. Must not know: snapshotters, the
share. Called by container.py and, after a crash, by cleanup.py.

An overlay's options can be longer than the page that mount(2) takes (many layers): then the layers' common
directory becomes the working directory of a thread of its own, and their names relative.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import NamedTuple

from agent.linux import syscalls
from shim.errors import HakoError

MS = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "remount": 32, "mand": 64, "dirsync": 128,
    "noatime": 1024, "nodiratime": 2048, "bind": 4096, "rbind": 4096 | 16384, "silent": 32768,
    "relatime": 1 << 21, "strictatime": 1 << 24, "lazytime": 1 << 25,
}  # fmt: skip
CLEAR = {"rw": 1, "suid": 2, "dev": 4, "exec": 8, "async": 16, "atime": 1024, "diratime": 2048}
MS_REMOUNT, MS_BIND = 32, 4096
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
CLONE_FS = 0x200
DATA_LIMIT = 4095  # mount(2): a page, less its terminating zero


class RootfsMount(NamedTuple):
    """One entry of CreateTaskRequest.rootfs; host paths. `target` is relative to the root, "" for the root."""

    type: str
    source: str
    options: tuple[str, ...]
    target: str = ""


def mount_all(mounts: Sequence[RootfsMount], directory: str) -> None:
    """Mount the entries at `directory` (host path, made if missing).

    Raises HakoError; nothing stays mounted then.
    """
    os.makedirs(directory, mode=0o711, exist_ok=True)
    done: list[str] = []
    try:
        for mount in mounts:
            target = os.path.join(directory, mount.target.lstrip("/")) if mount.target else directory
            _mount(mount, target)
            done.append(target)
    except OSError as exc:
        for target in reversed(done):
            unmount(target)
        step = f"mount {mount.type} {mount.source}"
        raise HakoError(exc.strerror or str(exc), step=step, object=directory) from exc


def unmount(directory: str) -> None:
    """Take away every mount at `directory`; none, or no directory, is fine. Never follows a symbolic link."""
    while True:
        try:
            syscalls.umount2(directory, MNT_DETACH | UMOUNT_NOFOLLOW)
        except OSError:  # EINVAL: not a mount point (any more), ENOENT
            return


def _mount(mount: RootfsMount, target: str) -> None:
    flags, data = parse_options(mount.options)
    if len(data) > DATA_LIMIT and mount.type == "overlay":
        _mount_relative(mount, target, flags, data)
    else:
        syscalls.mount(mount.source, target, mount.type, flags, data)
    if flags & MS_BIND and flags & ~(MS["rbind"] | MS["silent"]):
        # A bind takes no other flags: they are set by a remount (mount(2)).
        syscalls.mount(mount.source, target, mount.type, (flags & ~16384) | MS_REMOUNT | MS_BIND, "")


def parse_options(options: Sequence[str]) -> tuple[int, str]:
    """Mount options as flags and the rest as data for the filesystem."""
    flags = 0
    data = []
    for option in options:
        if option in MS:
            flags |= MS[option]
        elif option in CLEAR:
            flags &= ~CLEAR[option]
        elif option and not option.startswith("X-"):
            data.append(option)
    return flags, ",".join(data)


def shortened(data: str) -> tuple[str, str]:
    """(directory, data) with the lower directories of an overlay relative to the longest common directory."""
    entries = data.split(",")
    at = next(index for index, entry in enumerate(entries) if entry.startswith("lowerdir="))
    layers = entries[at].removeprefix("lowerdir=").split(":")
    directory = os.path.commonpath([os.path.dirname(layer) for layer in layers])
    entries[at] = "lowerdir=" + ":".join(os.path.relpath(layer, directory) for layer in layers)
    return directory, ",".join(entries)


def _mount_relative(mount: RootfsMount, target: str, flags: int, data: str) -> None:
    directory, short = shortened(data)
    failure: list[OSError] = []

    def work() -> None:
        try:
            syscalls.unshare(CLONE_FS)  # the working directory of this thread alone
            os.chdir(directory)
            syscalls.mount(mount.source, target, mount.type, flags, short)
        except OSError as exc:
            failure.append(exc)

    thread = threading.Thread(target=work, name="hako-mount")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
