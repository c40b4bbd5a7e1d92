"""The user's terminal while it belongs to a container.

Owns: raw mode and its sure end, the window's size, and the keys that detach (ctrl-p ctrl-q).
Must not know: where the bytes go. Called by session.py.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
import tty

from shim.cli.options import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from shim.cli.options import Parsed

CTRL_P, CTRL_Q = b"\x10", b"\x11"


def is_terminal(fd: int) -> bool:
    """Whether `fd` is a terminal; False too if it is not open."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def require(parsed: Parsed) -> None:
    """With -i and -t our own input must be a terminal. Raises UsageError."""
    if parsed.flag("--tty") and parsed.flag("--interactive") and not is_terminal(0):
        raise UsageError("standard input is not a terminal", hint="leave out -t")


def window_size(fd: int) -> tuple[int, int]:
    """(columns, rows) of the terminal `fd`, (0, 0) if it has none."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return 0, 0
    return columns, rows


class RawMode:
    """While entered, keys go through as they are: Ctrl-C is a byte for the container, not a signal for us."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[int | list[bytes | int]] | None = None

    def __enter__(self) -> None:
        self._before = termios.tcgetattr(self._fd)
        tty.setraw(self._fd, termios.TCSADRAIN)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()

    def restore(self) -> None:
        """The terminal as it was; may be repeated. A terminal that is gone needs nothing."""
        if self._before is not None:
            try:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
            except (OSError, termios.error):
                pass
            self._before = None


class DetachKeys:
    """Takes ctrl-p ctrl-q out of what is typed; a ctrl-p alone is held back until the next key."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """(what goes to the container, whether the user wants to leave)."""
        data = self._held + typed
        before, keys, _ = data.partition(CTRL_P + CTRL_Q)
        if keys:
            return before, True
        self._held = CTRL_P if data.endswith(CTRL_P) else b""
        return data.removesuffix(self._held) if self._held else data, False
