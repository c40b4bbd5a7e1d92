"""Output of detached containers as a log file in the format of the Kubernetes CRI, rotated.

    2026-11-23T09:00:00.000000000Z stdout F a whole line
    2026-11-23T09:00:00.000000001Z stderr P a piece of a line that goes on in the next record

Owns: the format (pieces of at most 16 KiB, tag P until the newline), the limit of 10 MiB and the one
predecessor (NAME.1). Must not know: whose output it is. Called by fifo.py; written to in the loop's thread.
"""

from __future__ import annotations

import errno
import os
import time

LIMIT = 10 << 20
PIECE = 16 << 10
FULL = (errno.ENOSPC, errno.EDQUOT)


class _File:
    """The file itself, shared by the streams that write to it."""

    def __init__(self, path: str, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.users = 0
        self.fd = self._open()
        self.size = os.fstat(self.fd).st_size

    def append(self, record: bytes) -> None:
        """Write one record whole, in a new file if this one is full. A disk that is full costs the record, no more."""
        try:
            if self.size and self.size + len(record) > self.limit:
                self._rotate()
            view = memoryview(record)
            while view:
                view = view[os.write(self.fd, view) :]
            self.size += len(record)
        except OSError as exc:
            if exc.errno not in FULL:
                raise

    def _rotate(self) -> None:
        os.rename(self.path, f"{self.path}.1")
        fd = self._open()
        os.close(self.fd)
        self.fd, self.size = fd, 0

    def _open(self) -> int:
        os.makedirs(os.path.dirname(self.path), mode=0o711, exist_ok=True)
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


class LogFile:
    """One stream ("stdout" or "stderr") of a log file at a host path. `limit` in bytes."""

    def __init__(self, path: str, stream: str, limit: int = LIMIT, _file: _File | None = None) -> None:
        self._file = _file or _File(path, limit)
        self._file.users += 1
        self._stream = stream.encode()
        self._partial = b""
        self._closed = False

    def stream(self, name: str) -> LogFile:
        """Another stream into the same file."""
        return LogFile(self._file.path, name, _file=self._file)

    def write(self, data: bytes) -> None:
        """Take output as it comes; whole lines become records at once."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        records = b"".join(self._records(line, b"F") for line in lines)
        while len(self._partial) >= PIECE:
            records += self._record(self._partial[:PIECE], b"P")
            self._partial = self._partial[PIECE:]
        if records:
            self._file.append(records)

    def close(self) -> None:
        """Write what has no newline yet; the last stream closes the file. Repeatable."""
        if self._closed:
            return
        self._closed = True
        if self._partial:
            self._file.append(self._record(self._partial, b"P"))
            self._partial = b""
        self._file.users -= 1
        if not self._file.users:
            os.close(self._file.fd)

    def _records(self, line: bytes, tag: bytes) -> bytes:
        pieces = [line[at : at + PIECE] for at in range(0, len(line), PIECE)] or [b""]
        head = b"".join(self._record(piece, b"P") for piece in pieces[:-1])
        return head + self._record(pieces[-1], tag)

    def _record(self, piece: bytes, tag: bytes) -> bytes:
        return b"%s %s %s %s\n" % (timestamp(time.time_ns()).encode(), self._stream, tag, piece)


def timestamp(nanoseconds: int) -> str:
    """RFC 3339 with nanoseconds in UTC, as the CRI's log format has it."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"
