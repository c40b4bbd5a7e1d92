"""AF_VSOCK: listening sockets of the guest, and who may connect to them."""

from __future__ import annotations

import _socket

CID_ANY = 0xFFFFFFFF
CID_HOST = 2

BACKLOG = 128
PACKET_MAX = 28 << 10
"""What one send may have. The guest's kernel (6.17, and stable ones since August 2025) puts more than 32 KiB into several
descriptors, which vhost-device-vsock 0.3 and others drop without a word, and the stream stands still."""


def listen(port: int) -> _socket.socket:
    """A socket listening on a port of whatever CID the guest has. Raises OSError."""
    sock = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM)
    sock.bind((CID_ANY, port))
    sock.listen(BACKLOG)
    return sock


def is_host(family: int, address: object) -> bool:
    """Whether a peer may give orders to the agent.

    AF_VSOCK knows no namespaces: where the kernel has vsock's loopback, any container could reach the agent's
    ports. Sockets of other families are reached by file permissions.
    """
    return family != _socket.AF_VSOCK or (isinstance(address, tuple) and address[0] == CID_HOST)
