"""A program in a terminal of our own: what a user types and sees."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable


def run_in_terminal(
    argv: list[str],
    environment: dict[str, str],
    *,
    rows: int,
    columns: int,
    typed: bytes,
    after: bytes,
    resized: tuple[int, int] | None = None,
    timeout: float = 60,
) -> bytes:
    """Everything that the program shows; once `after` has appeared, the terminal gets the size `resized` (rows, columns)
    and `typed` is typed.
    """
    master, slave = pty.openpty()
    _set_size(slave, rows, columns)
    session = ["setsid", "--ctty", *argv]  # SIGWINCH goes to whoever's controlling terminal it is
    process = subprocess.Popen(session, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)

    def act() -> None:
        if resized:
            _set_size(master, *resized)
        os.write(master, typed)

    try:
        return _converse(master, act, after, time.monotonic() + timeout)
    finally:
        os.close(master)
        if process.poll() is None:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()


def _set_size(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _converse(master: int, act: Callable[[], None], after: bytes, deadline: float) -> bytes:
    shown, acted = b"", False
    while True:
        left = deadline - time.monotonic()
        ready, _, _ = select.select([master], [], [], max(0, left))
        if not ready:
            raise AssertionError(f"the terminal is silent; so far {shown!r}")
        try:
            chunk = os.read(master, 65536)
        except OSError:  # EIO: the last one closed the terminal
            return shown
        if not chunk:
            return shown
        shown += chunk
        if after in shown and not acted:
            time.sleep(0.2)
            act()
            acted = True
