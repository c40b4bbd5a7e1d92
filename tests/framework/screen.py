"""A terminal with a program on it, as a user has it: what is shown, what is typed, the window's size.

Owns: the pty. Used by tests that need a conversation; ptyrun.py does for one line.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


class Screen:
    """Runs `argv` as the leader of a session on a terminal of its own."""

    def __init__(
        self, argv: Sequence[str], cwd: Path | str = "/", env: Mapping[str, str] | None = None
    ) -> None:
        self.fd, self.tty = pty.openpty()
        self.resize(80, 24)
        self.before = termios.tcgetattr(self.tty)
        self.shown = b""
        self.program: subprocess.Popen[bytes] = subprocess.Popen(
            ["setsid", "--ctty", *argv], cwd=cwd, env=env, stdin=self.tty, stdout=self.tty, stderr=self.tty
        )

    def resize(self, columns: int, rows: int) -> None:
        """What a terminal emulator does when its window changes; the kernel sends SIGWINCH."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.fd, keys)

    def wait_for(self, text: bytes, seconds: float = 60) -> None:
        """Wait until `text` is shown after what was waited for before."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self.fd], [], [], left)[0]:
                raise AssertionError(f"{text!r} is not shown, only {self.shown!r}")
            self.shown += os.read(self.fd, 4096)
        self.shown = self.shown.partition(text)[2]

    def close_window(self) -> None:
        """The terminal goes away, as when its window is closed."""
        os.close(self.tty)
        os.close(self.fd)

    def ended(self, seconds: float = 30) -> int:
        """The program's status; the terminal is as it was before."""
        try:
            status = self.program.wait(timeout=seconds)
            assert termios.tcgetattr(self.tty) == self.before, "the terminal was not restored"
        finally:
            self.close_window()
        return status
