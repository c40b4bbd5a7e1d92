"""Root filesystems as erofs images: packed once, kept under what they were made of, bounded.

    <cache>/rootfs/KEY.erofs    read-only for everybody; its time of change is when it was last used
                  /KEY.lock     held by whoever packs it

Owns: that directory. Must not know: where a tree comes from, what becomes of the image. Called by sandbox/disks.py.

An image is written to a file without a name, which is linked under its key when it is complete: whoever is killed
leaves nothing. It is used by descriptor, so that it may be swept away under a running VM. Uncompressed: the guest
would pay for it, and under TCG dearly.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from shim import paths, process
from shim.errors import HakoError

SUFFIX, LOCK = ".erofs", ".lock"
STEP = "pack the root filesystem"
TIMEOUT = 300.0  # seconds; 50 MB of small files take 0.6
MIB = 1 << 20


def directory() -> str:
    """Where the images are (host path)."""
    return paths.cache_dir("rootfs")


def packed(tree: str, key: str, most_mib: int) -> int:
    """A descriptor, for reading, of an image of host directory `tree`.

    `key` says what the tree is made of: an image with this key is used again, until all images together are more than
    `most_mib`; "" packs it for this once. Raises HakoError (CommandFailed where mkfs.erofs does).
    """
    try:
        os.makedirs(directory(), mode=0o700, exist_ok=True)
        if not key:
            return _pack(tree, "")
        with _locked(key):
            found = _find(key)
            if found >= 0:
                return found
            made = _pack(tree, key)
        sweep(most_mib, key)
        return made
    except OSError as exc:
        hint = "HAKO_CACHE_DIR must be on a file system with room and unnamed files (ext4, xfs, btrfs, tmpfs)"
        raise HakoError(exc.strerror or str(exc), step=STEP, object=tree, hint=hint) from exc


def sweep(most_mib: int, keep: str = "") -> list[str]:
    """Remove the images that were used longest ago until the rest is at most `most_mib`; `keep` stays. Their keys."""
    found = [entry for entry in os.scandir(directory()) if entry.name.endswith(SUFFIX)]
    left = most_mib * MIB
    gone = []
    for entry in sorted(found, key=lambda entry: entry.stat().st_mtime, reverse=True):
        key = entry.name.removesuffix(SUFFIX)
        left -= entry.stat().st_blocks * 512
        if left < 0 and key != keep:
            _remove(key)
            gone.append(key)
    return gone


def _remove(key: str) -> None:
    for suffix in (SUFFIX, LOCK):
        try:
            os.unlink(os.path.join(directory(), key + suffix))
        except FileNotFoundError:
            pass


def _find(key: str) -> int:
    """The image, used now; -1 if there is none."""
    path = os.path.join(directory(), key + SUFFIX)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    os.utime(fd)
    return fd


def _pack(tree: str, key: str) -> int:
    where = os.open(directory(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = os.open(directory(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o400)
        try:
            name = f"/proc/self/fd/{file}"
            # Times are kept: Python compares a source's with what its byte code says.
            process.run(["mkfs.erofs", "--quiet", "--preserve-mtime", name, tree], TIMEOUT, fds={"image": file})
            if key:
                _link(name, key, where)
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(file)
    finally:
        os.close(where)


def _link(name: str, key: str, where: int) -> None:
    """Give the file a name, synced. os.link follows the link in /proc only where it is given a directory (linkat)."""
    os.fsync(int(name.rpartition("/")[2]))
    try:
        os.link(name, key + SUFFIX, src_dir_fd=where, dst_dir_fd=where)
    except FileExistsError:
        pass  # its lock was swept away in between


@contextmanager
def _locked(key: str) -> Iterator[None]:
    fd = os.open(os.path.join(directory(), key + LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
