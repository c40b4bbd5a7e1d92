"""How far ahead of a reader the kernel reads from a virtio-fs share.

Owns: that number and where the kernel takes it. Called by agent.storage once a share is mounted.

Each request is a round trip out of the VM, and may carry 1 MiB; the kernel's own number makes 128 KiB of it. It also decides how
much is read around a page of a mapped program that is missing. Measured (CPU of an emulated guest): with 512 KiB 64 MiB are read
in two thirds of the time, and a Python with its libraries starts as it did; with 1 MiB that takes a quarter more.
"""

from __future__ import annotations

import os

from agent import log

KIBIBYTES = 512
BDI = "/sys/class/bdi"


def widen(mount_point: str, bdi: str = BDI) -> None:
    """Set it for the file system at `mount_point` (guest path). A failure only makes reading slower, and is logged.

    Mounts that virtiofsd announces below it have the same backing device (Linux, fs/fuse/inode.c, fuse_fill_super_submount).
    """
    try:
        device = os.stat(mount_point).st_dev
        path = f"{bdi}/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d" % KIBIBYTES)
        finally:
            os.close(fd)
    except OSError as error:
        log.error(f"read-ahead of {mount_point}: {error}")
