"""One JSON object with descriptors over a stream socket: how the network child and its parent talk.

Owns: the framing (four bytes of length, then JSON; descriptors ride on the first byte). Must not know: what
is said. Both sides import it, so it imports little.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_BYTES = 8 * 1024 * 1024  # a namespace with 30,000 routes; more is refused, not read
MAX_FDS = 64  # NICs of one pod

_LENGTH = struct.Struct(">I")


class BrokenMessage(Exception):
    """The other side closed early, or sent too much."""


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send `message` with `fds`, which stay open here. Raises BrokenMessage if it is too large, OSError."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_BYTES or len(fds) > MAX_FDS:
        raise BrokenMessage(f"message of {len(body)} bytes and {len(fds)} descriptors is too large")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    data = _LENGTH.pack(len(body)) + body
    sent = sock.sendmsg([data], ancillary)
    sock.sendall(memoryview(data)[sent:])


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and its descriptors (close-on-exec, owned by the caller).

    Raises BrokenMessage at the end of the stream or for what `send` would not send, TimeoutError, OSError; no
    descriptor is left open then.
    """
    fds: list[int] = []
    try:
        head = _first(sock, fds)
        (length,) = _LENGTH.unpack(head + _exactly(sock, _LENGTH.size - len(head)))
        if length > MAX_BYTES:
            raise BrokenMessage(f"message of {length} bytes is too large")
        return json.loads(_exactly(sock, length)), fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _first(sock: socket.socket, fds: list[int]) -> bytes:
    """The start of the header and, put into `fds`, the descriptors that ride on it."""
    space = socket.CMSG_SPACE(MAX_FDS * struct.calcsize("i"))
    data, ancillary, flags, _address = sock.recvmsg(_LENGTH.size, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            fds.extend(numbers)
    if flags & socket.MSG_CTRUNC:
        raise BrokenMessage("more descriptors than expected")
    if not data:
        raise BrokenMessage("the other side closed without a word")
    return data


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(min(size - len(data), 65536))
        if not chunk:
            raise BrokenMessage("the other side closed in the middle of a message")
        data += chunk
    return bytes(data)
