"""Waiting for devices by the kernel's uevents, never by polling.

Owns: the uevent socket, the message format, the wait with a deadline. What is waited for is the caller's
check. Called by agent/storage, agent/network.py and agent/guest.py.
"""

from __future__ import annotations

import _socket
import errno
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, TypeVar

    Result = TypeVar("Result")

_NETLINK_KOBJECT_UEVENT = 15
_KERNELS_GROUP = 1
_LONGEST = 16384
_BUFFER = 1 << 20


def parse(data: bytes) -> dict[str, str]:
    """KEY=value pairs of a message (ACTION, DEVPATH, SUBSYSTEM, DEVNAME ...); {} for what is none."""
    head, *words = data.split(b"\0")
    if b"@" not in head:
        return {}
    pairs = {}
    for word in words:
        key, equals, value = word.partition(b"=")
        if equals:
            pairs[key.decode("ascii", "replace")] = value.decode("utf-8", "surrogateescape")
    return pairs


class Uevents:
    """The kernel's device events from now on; a context manager."""

    def __init__(self) -> None:
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
        self._socket = _socket.socket(_socket.AF_NETLINK, kind, _NETLINK_KOBJECT_UEVENT)
        # A hot-plugged bus announces dozens of devices at once; only root may go beyond the limit.
        try:
            self._socket.setsockopt(_socket.SOL_SOCKET, 33, _BUFFER)  # SO_RCVBUFFORCE
        except PermissionError:
            self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, _BUFFER)
        self._socket.bind((0, _KERNELS_GROUP))

    def __enter__(self) -> Uevents:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def next(self, seconds: float) -> dict[str, str] | None:
        """The next event, None at the deadline. {} means that events were lost: look at the state again."""
        deadline = time.monotonic() + seconds
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            self._socket.settimeout(remaining)
            try:
                data, sender = self._socket.recvfrom(_LONGEST)
            except TimeoutError:
                return None
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return {}
                raise
            # Others could send to the group too; only the kernel's word counts.
            if sender[0] == 0:
                return parse(data)


def wait_for(
    check: Callable[[], Result | None], subsystems: tuple[str, ...], seconds: float
) -> Result | None:
    """The first answer of `check` that is not None; None at the deadline.

    `check` looks at the state of things (sysfs) and is called at once and after every event of
    `subsystems`.
    """
    found = check()
    if found is not None:
        return found
    deadline = time.monotonic() + seconds
    with Uevents() as events:
        # What came between the first look and the open socket sent no event to it.
        found = check()
        while found is None:
            event = events.next(deadline - time.monotonic())
            if event is None:
                return check()
            if not event or event.get("SUBSYSTEM") in subsystems:
                found = check()
    return found
