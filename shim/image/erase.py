"""Removing a directory whose content a container has written: nothing that it planted can lead elsewhere.

Owns: that walk. Must not know: what the directory is. Called by overlay.py and workspace.py.

Descriptors, not paths: every directory is opened beneath its parent, without symbolic links and without
crossing into another mount (not even a bind mount of the same file system), so that a mount that somebody
left inside makes it stop instead of emptying what is mounted. A tree of any depth takes two descriptors and
no recursion: what lies deeper than one level is moved up to the top first.
"""

from __future__ import annotations

import errno
import os
import stat

from agent.linux import syscalls
from shim.errors import HakoError

RESOLVE_NO_XDEV = 0x1  # linux/openat2.h
RESOLVE = RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_BENEATH
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

STEP = "remove directory"


def remove_tree(path: str) -> None:
    """Remove the directory at this host path with all in it; one that is not there is no error.

    Raises HakoError: a mount is in the way (nothing below it was touched), or the file system refuses.
    """
    parent, name = os.path.split(os.path.abspath(path))
    try:
        above = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _remove(above, name)
    except FileNotFoundError:
        return
    except OSError as exc:
        reason = "something is mounted in it" if exc.errno in (errno.EXDEV, errno.EBUSY) else str(exc)
        raise HakoError(reason, step=STEP, object=path) from exc
    finally:
        os.close(above)


def _remove(above: int, name: str) -> None:
    top = syscalls.openat2(above, name, DIRECTORY, 0, RESOLVE)
    try:
        prefix = f".hako-{os.urandom(8).hex()}-"
        count = 0
        while entries := os.listdir(top):
            for entry in entries:
                if not _remove_shallow(top, entry):
                    count = _hoist(top, entry, prefix, count)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=above)


def _remove_shallow(directory: int, name: str) -> bool:
    """Remove a file or an empty directory; False for a directory that is not empty."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=directory)
        return True
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError as exc:
        if exc.errno != errno.ENOTEMPTY:
            raise
        return False
    return True


def _hoist(top: int, name: str, prefix: str, count: int) -> int:
    """Empty directory `name`: what cannot be removed at once moves up into `top`. The number of moves so
    far.
    """
    below = syscalls.openat2(top, name, DIRECTORY, 0, RESOLVE)
    try:
        for entry in os.listdir(below):
            if not _remove_shallow(below, entry):
                os.rename(entry, f"{prefix}{count}", src_dir_fd=below, dst_dir_fd=top)
                count += 1
    finally:
        os.close(below)
    os.rmdir(name, dir_fd=top)
    return count
