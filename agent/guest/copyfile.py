"""CopyFile: files, directories and links that the host sends in pieces, for guests without a shared file
system.

Owns: where such files may go and how they get there. The tree is shared with containers, hence hostile:
every step is relative to a descriptor and follows no symbolic link. A file appears under its name only when
it is complete. Called by agent/service.py.
"""

from __future__ import annotations

import errno
import os
import stat

from agent.errors import InvalidSpec, step_error
from agent.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from agent.api import agent_pb2

SHARED = "/run/kata-containers/shared/containers"
LARGEST_PIECE = 1 << 20
TMPFS_MAGIC = 0x01021994
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEFAULT_DIRECTORY_MODE = 0o750


def copy(request: agent_pb2.CopyFileRequest, base: str = SHARED) -> None:
    """One request: a piece of a file, a directory, or a link (`data` is where it points).

    Raises InvalidSpec for a path outside of `base` (guest path), StepError.
    """
    parts = _parts(request.path, base)
    if len(request.data) > LARGEST_PIECE:
        raise InvalidSpec("data", f"{len(request.data)} bytes are more than {LARGEST_PIECE}")
    if request.offset < 0 or request.file_size < 0:
        raise InvalidSpec("offset", "is negative")
    kind = stat.S_IFMT(request.file_mode) or stat.S_IFREG
    make = _MAKERS.get(kind)
    if make is None:
        raise InvalidSpec("file_mode", f"{request.file_mode:#o} is not a file, directory or link")
    try:
        directory = _open_parents(base, parts[:-1], stat.S_IMODE(request.dir_mode))
        try:
            make(directory, parts[-1], request)
        finally:
            os.close(directory)
    except OSError as error:
        if error.filename is None or "/" not in str(error.filename):
            error.filename = request.path
        raise step_error("copy file", error) from error


def forget(owner: str, base: str = SHARED) -> None:
    """Remove what was copied for a container, whose mounts are gone by now. Raises StepError.

    Only from memory of the guest: a file system that is shared is the host's to tidy.
    """
    try:
        here = os.open(base, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        if syscalls.filesystem_type(here) == TMPFS_MAGIC:
            _remove_tree(here, owner)
    except OSError as error:
        raise step_error("remove copied files", error) from error
    finally:
        os.close(here)


def _remove_tree(directory: int, name: str) -> None:
    """A file, or a directory with all in it; a mount in the way stays, with an error. Missing is fine."""
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=directory)
            return
        here = os.open(name, _DIRECTORY, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        for below in os.listdir(here):
            _remove_tree(here, below)
    finally:
        os.close(here)
    os.rmdir(name, dir_fd=directory)


def _parts(path: str, base: str) -> list[str]:
    inside = path.removeprefix(base + "/")
    parts = [part for part in inside.split("/") if part not in ("", ".")]
    if inside == path or not parts or ".." in parts or "\0" in path:
        raise InvalidSpec("path", f"{path!r} is not below {base}")
    return parts


def _open_parents(base: str, parts: list[str], mode: int) -> int:
    """The directory that holds the file, made with its parents where they are missing."""
    here = os.open(base, _DIRECTORY)
    for part in parts:
        try:
            try:
                os.mkdir(part, mode or _DEFAULT_DIRECTORY_MODE, dir_fd=here)
            except FileExistsError:
                pass
            below = os.open(part, _DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def _own(fd: int, request: agent_pb2.CopyFileRequest) -> None:
    os.fchown(fd, request.uid, request.gid)
    os.fchmod(fd, stat.S_IMODE(request.file_mode))


def _make_file(directory: int, name: str, request: agent_pb2.CopyFileRequest) -> None:
    temporary = f".{name}.hako-part"
    fd = _continue_file(directory, temporary) if request.offset else _start_file(directory, temporary)
    try:
        written = 0
        while written < len(request.data):
            written += os.pwrite(fd, request.data[written:], request.offset + written)
        if request.offset + written < request.file_size:
            return
        os.ftruncate(fd, request.file_size)
        _own(fd, request)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(fd)


def _start_file(directory: int, name: str) -> int:
    _unlink(directory, name)
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)


def _continue_file(directory: int, name: str) -> int:
    # Not blocking: a container may have put a FIFO here since the first piece.
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no longer a regular file", name)
    return fd


def _unlink(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


def _make_directory(directory: int, name: str, request: agent_pb2.CopyFileRequest) -> None:
    try:
        os.mkdir(name, stat.S_IMODE(request.file_mode), dir_fd=directory)
    except FileExistsError:
        pass
    fd = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        _own(fd, request)
    finally:
        os.close(fd)


def _make_link(directory: int, name: str, request: agent_pb2.CopyFileRequest) -> None:
    temporary = f".{name}.hako-part"
    _unlink(directory, temporary)
    os.symlink(request.data, temporary.encode(), dir_fd=directory)
    os.chown(temporary, request.uid, request.gid, dir_fd=directory, follow_symlinks=False)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


_MAKERS: dict[int, Callable[[int, str, agent_pb2.CopyFileRequest], None]] = {
    stat.S_IFREG: _make_file,
    stat.S_IFDIR: _make_directory,
    stat.S_IFLNK: _make_link,
}
