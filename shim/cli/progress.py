"""What the user sees while something takes long: one line on a terminal, rewritten; nothing in a pipe.

Owns: that line. It goes to stderr, so that stdout is the container's alone, and is wiped before the
container prints.
"""

from __future__ import annotations

import os
import sys
import time

REPORTED = {"pull": "fetching", "unpack": "unpacking"}
SHOW_AFTER = 0.3  # seconds: what is quicker needs no word


class Progress:
    """The step that is going on, with the seconds it has taken so far. Use as a context manager."""

    def __init__(self, stream_fd: int = 2) -> None:
        self._fd = stream_fd
        self._shown = os.isatty(stream_fd)
        self._text = "making the container"
        self._since = 0.0
        self._width = 0

    @property
    def text(self) -> str:
        """What is happening now."""
        return self._text

    def step(self, text: str) -> None:
        """From now on this is what happens."""
        self._text, self._since = text, time.monotonic()
        self._draw(f"{text} ...")

    def report(self, step: str, detail: str) -> None:
        """What an image store says: `pull` or `unpack`, and of what."""
        if step in REPORTED and self._text.partition(" ")[0] != REPORTED[step]:
            self.step(f"{REPORTED[step]} {detail}")
        else:
            self.detail(detail)

    def detail(self, text: str) -> None:
        """More about the present step, such as how much has been fetched."""
        seconds = time.monotonic() - self._since
        if seconds > SHOW_AFTER:
            self._draw(f"{self._text} ... {text} ({seconds:.0f} s)")

    def clear(self) -> None:
        """Leave the line empty for somebody else."""
        self._draw("")

    def _draw(self, text: str) -> None:
        if self._shown:
            columns = _columns(self._fd)
            line = text[: columns - 1]
            os.write(self._fd, b"\r" + line.ljust(self._width).encode() + b"\r" + line.encode())
            self._width = len(line)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.clear()
        sys.stderr.flush()


def _columns(fd: int) -> int:
    try:
        return os.get_terminal_size(fd).columns or 80
    except OSError:
        return 80
