"""The user's terminal while it belongs to a container, and what is shown on it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
from collections.abc import Iterator

import pytest

from shim.cli import table, terminal
from shim.cli.progress import Progress


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """(our end, the terminal)."""
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_raw_mode_ends_even_by_an_exception(pair: tuple[int, int]) -> None:
    """However the container's session ends, the shell gets its terminal back as it was."""
    _, tty = pair
    before = termios.tcgetattr(tty)
    with pytest.raises(RuntimeError), terminal.RawMode(tty):
        assert not termios.tcgetattr(tty)[3] & termios.ICANON
        raise RuntimeError
    assert termios.tcgetattr(tty) == before


def test_window_size(pair: tuple[int, int]) -> None:
    """Columns and rows are those of the terminal; something else has none."""
    _, tty = pair
    fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    assert terminal.window_size(tty) == (101, 33)
    with open(os.devnull, "rb") as null:
        assert terminal.window_size(null.fileno()) == (0, 0)


@pytest.mark.parametrize(
    ("typed", "sent", "leaves"),
    [
        ([b"ls\r"], b"ls\r", False),
        ([b"\x10\x11"], b"", True),
        ([b"ab\x10", b"\x11cd"], b"ab", True),
        ([b"\x10", b"\x10\x11"], b"\x10", True),
        ([b"\x10", b"x"], b"\x10x", False),
        ([b"\x11\x10a"], b"\x11\x10a", False),
    ],
)
def test_detach_keys(typed: list[bytes], sent: bytes, leaves: bool) -> None:
    """ctrl-p ctrl-q leaves, even in two reads; a ctrl-p before another key reaches the container."""
    keys, got, left = terminal.DetachKeys(), b"", False
    for piece in typed:
        data, leave = keys.feed(piece)
        got, left = got + data, left or leave
    assert (got, left) == (sent, leaves)


def test_progress_is_quiet_in_a_pipe() -> None:
    """Nothing is written where nobody watches."""
    read, write = os.pipe()
    with Progress(write) as progress:
        progress.step("unpacking")
    os.close(write)
    assert os.read(read, 100) == b""
    os.close(read)


def test_progress_leaves_an_empty_line(pair: tuple[int, int]) -> None:
    """On a terminal the step is shown, and wiped at the end."""
    master, tty = pair
    with Progress(tty) as progress:
        progress.step("unpacking")
    wiped, shown = b"\r" + b" " * len("unpacking ...") + b"\r", b""
    # The kernel hands it over piece by piece.
    while not shown.endswith(wiped) and select.select([master], [], [], 5)[0]:
        shown += os.read(master, 1000)
    assert b"unpacking ..." in shown and shown.endswith(wiped)


def test_table_columns_line_up() -> None:
    """Each column is as wide as its widest cell and no line ends in blanks."""
    assert table.table(("A", "BB"), [("xxx", "y"), ("z", "")]) == "A    BB\nxxx  y\nz\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (7200, "2 hours"),
        (90000, "1 day"),
    ],
)
def test_age(seconds: float, text: str) -> None:
    """Ages are in one unit that fits."""
    assert table.age(seconds) == text
