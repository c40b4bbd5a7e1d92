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


def run_in_terminal(
    argv: list[str],
    environment: dict[str, str],
    *,
    rows: int,
    columns: int,
    typed: bytes,
    after: bytes,
    timeout: float = 60,
) -> bytes:
    """Everything that the program shows; `typed` is typed once `after` has appeared."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True)
    os.close(slave)
    try:
        return _converse(master, typed, after, time.monotonic() + timeout)
    finally:
        os.close(master)
        if process.poll() is None:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()


def _converse(master: int, typed: bytes, after: bytes, deadline: float) -> bytes:
    shown = b""
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
        if typed and after in shown:
            time.sleep(0.2)
            os.write(master, typed)
            typed = b""
