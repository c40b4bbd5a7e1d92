"""Mount points and sources in trees that containers can change.

Owns: opening and making paths so that no symbolic link on the way is followed, whoever plants it and
whenever. Everything returned is an O_PATH descriptor, to be used by descriptor. Called by agent/storage.
"""

from __future__ import annotations

import errno
import os
import stat

from agent.linux import syscalls

_STRICT = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
_NEW_DIRECTORY_MODE = 0o755


def open_existing(path: str) -> int:
    """Open what is there. Raises OSError (ELOOP where a symbolic link is on the way)."""
    return syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH | os.O_NOFOLLOW, 0, _STRICT)


def directory(path: str) -> int:
    """Open a directory, made with its parents where they are missing. Raises OSError."""
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in _parts(path):
        try:
            below = _step(here, part)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.close(here)
        here = below
    return here


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or not path.startswith("/"):
        raise OSError(errno.EINVAL, "is not a plain absolute path", path)
    return parts


def _step(here: int, part: str) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(part, flags, dir_fd=here)
    except FileNotFoundError:
        try:
            os.mkdir(part, _NEW_DIRECTORY_MODE, dir_fd=here)
        except FileExistsError:
            pass
        return os.open(part, flags, dir_fd=here)


def like(pattern: int, path: str) -> int:
    """Open a directory or file at `path`, made where it is missing, of the kind that `pattern` is open at.
    """
    if stat.S_ISDIR(os.fstat(pattern).st_mode):
        return directory(path)
    parent, _, name = path.rstrip("/").rpartition("/")
    here = directory(parent or "/")
    try:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=here))
        except FileExistsError:
            pass
        return syscalls.openat2(here, name, os.O_PATH | os.O_NOFOLLOW, 0, _STRICT)
    finally:
        os.close(here)


def remove_directory(path: str) -> None:
    """Remove an empty directory that was made for a mount; anything else stays."""
    parent, _, name = path.rstrip("/").rpartition("/")
    try:
        here = open_existing(parent or "/")
    except OSError:
        return
    try:
        os.rmdir(name, dir_fd=here)
    except OSError:
        pass
    finally:
        os.close(here)
