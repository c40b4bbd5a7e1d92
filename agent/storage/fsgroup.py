"""Group ownership of a volume, as Kubernetes' fsGroup wants it.

Owns: the rules (group, group rights, set-group-id on directories) and a walk that no symbolic link and no
depth of the volume's tree can lead astray. Called by agent/storage.
"""

from __future__ import annotations

import errno
import os
import stat

_FILE_RIGHTS = 0o660
_DIRECTORY_RIGHTS = 0o770 | stat.S_ISGID
_ON_ROOT_MISMATCH = 1  # types.FSGroupChangePolicy
_DEEPEST = 256
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def give(fd: int, gid: int) -> None:
    """The directory that `fd` (O_PATH) is open at: group `gid` with all rights, and set-group-id."""
    directory = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _give_directory(directory, gid)
    finally:
        os.close(directory)


def give_tree(fd: int, gid: int, policy: int) -> None:
    """The directory and everything below; with OnRootMismatch nothing where the top is right already.

    Raises OSError, ELOOP for a tree that is deeper than any volume's.
    """
    top = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if policy == _ON_ROOT_MISMATCH and _is_right(top, gid):
            return
        _walk(top, gid, 0)
    finally:
        os.close(top)


def _is_right(directory: int, gid: int) -> bool:
    info = os.fstat(directory)
    return info.st_gid == gid and info.st_mode & _DIRECTORY_RIGHTS == _DIRECTORY_RIGHTS


def _walk(directory: int, gid: int, depth: int) -> None:
    if depth > _DEEPEST:
        raise OSError(errno.ELOOP, f"volume is deeper than {_DEEPEST} directories")
    with os.scandir(directory) as entries:
        for entry in entries:
            _visit(directory, entry, gid, depth)
    # The top changes last: it tells OnRootMismatch that all below is done.
    _give_directory(directory, gid)


def _visit(directory: int, entry: os.DirEntry[str], gid: int, depth: int) -> None:
    if entry.is_dir(follow_symlinks=False):
        try:
            below = os.open(entry.name, _OPEN, dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            return  # exchanged since it was listed
        try:
            _walk(below, gid, depth + 1)
        finally:
            os.close(below)
        return
    os.chown(entry.name, -1, gid, dir_fd=directory, follow_symlinks=False)
    if entry.is_file(follow_symlinks=False):
        _give_file(directory, entry.name)


def _give_file(directory: int, name: str) -> None:
    # chmod(2) cannot be told not to follow a link, so the file is opened first.
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(mode) | _FILE_RIGHTS)
    finally:
        os.close(fd)


def _give_directory(directory: int, gid: int) -> None:
    os.fchown(directory, -1, gid)
    os.fchmod(directory, stat.S_IMODE(os.fstat(directory).st_mode) | _DIRECTORY_RIGHTS)
