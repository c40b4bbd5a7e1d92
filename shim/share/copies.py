"""A small file or directory of the host, read for being sent to a guest: bounded, and nothing in it is followed.

Owns: what may be copied and how much. Must not know: why it is copied, where to. Called by sandbox/disks.py.

The tree may belong to somebody who changes it meanwhile: everything is opened beneath its directory, without symbolic
links, and what was opened is what is looked at.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from shim.errors import HakoError

MOST_ENTRIES = 1024
STEP = "copy into the guest"


class Entry(NamedTuple):
    """A file, directory or symbolic link. `path` is relative, "" for the top; `data`: contents, or where a link points."""

    path: str
    mode: int
    uid: int
    gid: int
    data: bytes = b""


class TooMuch(HakoError):
    """It is more than may be copied."""


class NotCopied(HakoError):
    """Something in it cannot be copied: a socket, a pipe, a device."""


def read(source: str, most: int) -> list[Entry]:
    """All of host path `source`, parents before children; at most `most` bytes. Raises TooMuch, NotCopied, HakoError."""
    reader = _Reader(source, most)
    try:
        reader.take(source, "", None)
    except OSError as exc:
        raise HakoError(exc.strerror or str(exc), step=STEP, object=source) from exc
    return reader.found


class _Reader:
    """One walk. Directories are open while what is in them is read: a link in their place leads nowhere."""

    def __init__(self, source: str, most: int) -> None:
        self.found: list[Entry] = []
        self._source = source
        self._most = most
        self._left = most

    def take(self, name: str, path: str, directory: int | None) -> None:
        """Whatever `name` in `directory` is; the top may be a link, as for a bind mount."""
        status = os.stat(name, dir_fd=directory, follow_symlinks=directory is None)
        if stat.S_ISLNK(status.st_mode):
            self._add(path, status, os.fsencode(os.readlink(name, dir_fd=directory)))
            return
        self._check_kind(status, path)
        # Not blocking: somebody may have put a pipe in its place.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if directory is None else os.O_NOFOLLOW)
        fd = os.open(name, flags, dir_fd=directory)
        try:
            self._take_open(fd, path)
        finally:
            os.close(fd)

    def _take_open(self, fd: int, path: str) -> None:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            self._add(path, status, b"")
            for name in sorted(os.listdir(fd)):
                self.take(name, f"{path}/{name}" if path else name, fd)
            return
        self._check_kind(status, path)
        self._check_room(status.st_size <= self._left)
        self._add(path, status, os.pread(fd, self._left, 0))

    def _add(self, path: str, status: os.stat_result, data: bytes) -> None:
        self._left -= len(data)
        self._check_room(len(self.found) < MOST_ENTRIES)
        self.found.append(Entry(path, status.st_mode, status.st_uid, status.st_gid, data))

    def _check_room(self, there: bool) -> None:
        if not there:
            raise TooMuch(f"holds more than {self._most} bytes or {MOST_ENTRIES} files", step=STEP, object=self._source)

    def _check_kind(self, status: os.stat_result, path: str) -> None:
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            place = os.path.join(self._source, path) if path else self._source
            raise NotCopied("is neither a file, a directory nor a symbolic link", step=STEP, object=place)
