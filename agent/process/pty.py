"""Pseudo-terminals: a pair from the container's own devpts, its size, and its becoming a controlling
terminal.

The pair comes from the container's /dev/pts, so that ttyname(3) works inside. Called by agent.container.child
to make one and by agent.process.stdio for its size. Knows nothing of who is at the other end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from agent.errors import StepError
from agent.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.rootfs import Root

# asm-generic/ioctls.h
TIOCSCTTY, TIOCSWINSZ, TIOCSPTLCK, TIOCGPTPEER = 0x540E, 0x5414, 0x40045431, 0x5441
MULTIPLEXER = os.makedev(5, 2)


def open_pair(root: Root, *, fallback: bool) -> tuple[int, int]:
    """(master, slave) of a new terminal of the container's devpts; `fallback`: of "/dev/ptmx" if it has none.

    The slave is asked of the master itself (TIOCGPTPEER): its path could lead anywhere. Raises OSError or
    StepError.
    """
    flags = os.O_RDWR | os.O_NOCTTY
    try:
        master = root.open("/dev/pts/ptmx", flags, syscalls.RESOLVE_NO_SYMLINKS)
        if not _is_multiplexer(master):
            raise StepError("terminal", errno.ENODEV, "/dev/pts/ptmx", "is not the multiplexer of a devpts")
    except FileNotFoundError:
        if not fallback:
            raise
        master = os.open("/dev/ptmx", flags | os.O_CLOEXEC)
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, TIOCGPTPEER, flags | os.O_CLOEXEC)
    return master, slave


def _is_multiplexer(fd: int) -> bool:
    info = os.fstat(fd)
    is_device = stat.S_ISCHR(info.st_mode) and info.st_rdev == MULTIPLEXER
    return is_device and syscalls.filesystem_type(fd) == syscalls.DEVPTS_SUPER_MAGIC


def set_size(fd: int, rows: int, columns: int) -> None:
    """Set the window size in characters; the foreground process group gets SIGWINCH."""
    fcntl.ioctl(fd, TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))


def make_controlling(slave: int) -> None:
    """Give the calling process, a session leader, this controlling terminal."""
    fcntl.ioctl(slave, TIOCSCTTY, 0)
