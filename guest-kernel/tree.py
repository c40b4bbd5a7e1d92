"""The files of a guest image as data: path in the guest to content, directory, link or device; written in one form or another.

Owns what makes an image reproducible: order, owners (root), modes and times (zero). Knows not what the files are for.
Called by image.py.
"""
from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

# Device numbers of the only nodes an initramfs needs before devtmpfs is mounted (linux/Documentation/admin-guide/devices.txt).
CONSOLE = (5, 1)
NULL = (1, 3)


@dataclass(frozen=True)
class Entry:
    """One inode: `mode` with its type bits, `data` = content or link target, `device` = (major, minor)."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


@dataclass
class Tree:
    """Guest paths without a leading slash, each with its Entry; parents of what is added are made."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Adds a directory and its parents; one that is there keeps its mode."""
        self._parents(path)
        self.entries.setdefault(path.strip("/"), Entry(stat.S_IFDIR | mode))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Adds a regular file."""
        self._parents(path)
        self.entries[path.strip("/")] = Entry(stat.S_IFREG | mode, data)

    def copy(self, path: str, source: Path, mode: int = 0o644) -> None:
        """Adds a host file's content."""
        self.file(path, source.read_bytes(), mode)

    def link(self, path: str, target: str) -> None:
        """Adds a symbolic link."""
        self._parents(path)
        self.entries[path.strip("/")] = Entry(stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, number: tuple[int, int], mode: int = 0o600) -> None:
        """Adds a character device node."""
        self._parents(path)
        self.entries[path.strip("/")] = Entry(stat.S_IFCHR | mode, device=number)

    def digest(self) -> str:
        """SHA-256 of everything in the tree."""
        total = hashlib.sha256()
        for path, entry in sorted(self.entries.items()):
            total.update(repr((path, entry.mode, entry.device, len(entry.data))).encode() + entry.data)
        return total.hexdigest()

    def write(self, root: Path) -> None:
        """Makes the files under a host directory; device nodes are left out (devtmpfs brings them)."""
        for path, entry in sorted(self.entries.items()):
            target = root / path
            if stat.S_ISDIR(entry.mode):
                target.mkdir(exist_ok=True)
            elif stat.S_ISLNK(entry.mode):
                target.symlink_to(entry.data.decode())
                continue
            elif stat.S_ISREG(entry.mode):
                target.write_bytes(entry.data)
            else:
                continue
            # Not the umask's choice.
            os.chmod(target, stat.S_IMODE(entry.mode))

    def cpio(self) -> bytes:
        """The tree as an uncompressed initramfs (cpio "newc", linux/Documentation/driver-api/early-userspace/)."""
        members = [_member(number, path, entry) for number, (path, entry) in enumerate(sorted(self.entries.items()), 1)]
        return b"".join([*members, _member(0, "TRAILER!!!", Entry(0))])

    def _parents(self, path: str) -> None:
        for parent in PurePosixPath(path.strip("/")).parents:
            if str(parent) != ".":
                self.entries.setdefault(str(parent), Entry(stat.S_IFDIR | 0o755))


def _member(inode: int, path: str, entry: Entry) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % value for value in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
