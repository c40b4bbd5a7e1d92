"""Reading a container's log: CRI format, one line per piece of output, one predecessor after a rotation.

    2026-11-23T09:00:00.123456789Z stdout F a whole line
    2026-11-23T09:00:00.123456789Z stderr P a piece that the next one continues

Owns: parsing, the last N lines, following. Must not know: who writes it (shim/stdio/logfile.py), how to
print.
"""

from __future__ import annotations

import os
from collections import deque
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO

BLOCK = 1 << 16


class Entry(NamedTuple):
    """One piece of output: when, on which stream, whether a newline follows, and the bytes."""

    time: str
    stream: str
    ends_line: bool
    content: bytes


def parse(line: bytes) -> Entry | None:
    """One line of the file without its newline; None if it is not one (a write that was cut off)."""
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr") or parts[2][:1] not in (b"F", b"P"):
        return None
    return Entry(parts[0].decode(errors="replace"), parts[1].decode(), parts[2][:1] == b"F", parts[3])


def read(path: str) -> Iterator[Entry]:
    """All entries of the log `path` (host), its predecessor's first."""
    yield from _read_file(f"{path}.1")
    yield from _read_file(path)


def last(entries: Iterable[Entry], lines: int) -> list[Entry]:
    """The entries of the last `lines` whole or begun lines, each stream's pieces counted as one line."""
    kept: deque[list[Entry]] = deque(maxlen=max(lines, 0))
    open_lines: dict[str, list[Entry]] = {}
    for entry in entries:
        line = open_lines.get(entry.stream)
        if line is None:
            line = open_lines[entry.stream] = []
            kept.append(line)
        line.append(entry)
        if entry.ends_line:
            del open_lines[entry.stream]
    return [entry for line in kept for entry in line]


class Follower:
    """The log `path` as it is being written, rotated under us, or not there yet."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._rest = b""
        self._stream: BinaryIO | None = None

    def so_far(self) -> list[Entry]:
        """Everything up to now, the predecessor's part included."""
        before = _read_file(f"{self._path}.1")
        return list(before) + self.poll()

    def poll(self) -> list[Entry]:
        """What was written since the last call."""
        if self._stream is None and not self._open():
            return []
        found = self._drain()
        if self._rotated():
            found += self._drain()  # written between our read and the rename
            self.close()
            found += self.poll()
        return found

    def close(self) -> None:
        """Stop; the next `poll` would begin again."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._rest = None, b""

    def _open(self) -> bool:
        try:
            self._stream = open(self._path, "rb")
        except FileNotFoundError:
            return False
        return True

    def _drain(self) -> list[Entry]:
        assert self._stream is not None
        lines: list[bytes] = []
        while block := self._stream.read(BLOCK):
            *whole, self._rest = (self._rest + block).split(b"\n")
            lines += whole
        return list(_entries(lines))

    def _rotated(self) -> bool:
        assert self._stream is not None
        try:
            there, here = os.stat(self._path), os.fstat(self._stream.fileno())
        except FileNotFoundError:  # between the rename and the new file
            return False
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


def write(entries: Iterable[Entry], put: Callable[[str, bytes], None], *, timestamps: bool) -> None:
    """Hand each entry to `put(stream, bytes)` as the container printed it, with its time before it if
    wanted."""
    for entry in entries:
        head = f"{entry.time} ".encode() if timestamps else b""
        put(entry.stream, head + entry.content + (b"\n" if entry.ends_line else b""))


def _read_file(path: str) -> Iterator[Entry]:
    try:
        with open(path, "rb") as stream:
            yield from _entries(line.rstrip(b"\n") for line in stream)
    except FileNotFoundError:
        pass


def _entries(lines: Iterable[bytes]) -> Iterator[Entry]:
    for line in lines:
        entry = parse(line)
        if entry is not None:
            yield entry
