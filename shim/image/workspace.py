"""The cache's directories: temporary ones that go with their process, locks, and moving a finished one in
place.

Owns: CACHE/oci/{tmp,locks}. Must not know: images. Called by store.py.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from shim import paths, process
from shim.image.erase import remove_tree
from shim.image.errors import ImageError

SYNC_TIMEOUT = 120.0


def root() -> str:
    """CACHE/oci, 0700: programs in unpacked images keep their setuid bits. Raises ImageError for a useless
    path.
    """
    path = paths.cache_dir("oci")
    if set(path) & set(":,\\"):
        raise ImageError(
            "colon, comma and backslash mean something to umoci and overlayfs",
            step="image cache",
            object=path,
        )
    os.makedirs(path, mode=0o755, exist_ok=True)
    os.chmod(path, 0o700)
    return path


def directory(kind: str) -> str:
    """CACHE/oci/KIND, made if need be."""
    path = os.path.join(root(), kind)
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Nobody else, in this or another process, is in the block with this name meanwhile."""
    fd = os.open(os.path.join(directory("locks"), name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def temporary() -> Iterator[str]:
    """A new directory, removed at the end; those of killed processes are removed at the start.

    Its owner holds a lock on it, so that who can take the lock knows that the owner is gone.
    """
    with locked("tmp"):
        sweep()
        path = os.path.join(directory("tmp"), os.urandom(8).hex())
        os.mkdir(path, 0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        remove_tree(path)
        os.close(fd)


def sweep() -> None:
    """Remove the temporary directories of processes that are gone."""
    for entry in list(os.scandir(directory("tmp"))):
        fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(entry.path)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)


def publish(source: str, target: str) -> None:
    """Move the finished directory `source` to `target`, so that after a power failure it is whole or not
    there.
    """
    process.run(["sync", "--file-system", source], SYNC_TIMEOUT)
    os.rename(source, target)
