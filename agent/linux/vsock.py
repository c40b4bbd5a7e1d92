"""AF_VSOCK: listening sockets of the guest, who may connect to them, how much one send and a connection may have."""

from __future__ import annotations

import _socket
import os

CID_ANY = 0xFFFFFFFF
CID_HOST = 2

BACKLOG = 128
BUFFER = 1 << 20
"""What may be on its way on a connection, in either direction, where both ends allow it: a whole frame of output
(process/pump.py). Linux's own default, 256 KiB, makes the guest wait for the host four times a frame."""
PACKET_MAX = 28 << 10
"""What one send may have, whatever the kernel. 6.17, and stable ones since August 2025, put more than 32 KiB into several
descriptors, which vhost-device-vsock 0.3 and others drop without a word, and the stream stands still."""


def send_max(release: str) -> int:
    """What one send may have under the kernel `release` (uname -r), in bytes.

    Up to 6.1 virtio_transport_send_pkt_work adds header and data as one descriptor each (sg_init_one; read in 6.1.192):
    it has no packets in several pieces, and itself cuts what it is given at 64 KiB.
    """
    try:
        major, minor = (int(number) for number in release.split(".", 2)[:2])
    except ValueError:
        return PACKET_MAX
    return 1 << 20 if (major, minor) <= (6, 1) else PACKET_MAX


SEND_MAX = send_max(os.uname().release)
"""What one send of a stream may have here."""


def listen(port: int) -> _socket.socket:
    """A socket listening on a port of whatever CID the guest has; connections have its BUFFER. Raises OSError."""
    sock = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM)
    for option in (_socket.SO_VM_SOCKETS_BUFFER_MAX_SIZE, _socket.SO_VM_SOCKETS_BUFFER_SIZE):
        sock.setsockopt(_socket.AF_VSOCK, option, BUFFER)
    sock.bind((CID_ANY, port))
    sock.listen(BACKLOG)
    return sock


def is_host(family: int, address: object) -> bool:
    """Whether a peer may give orders to the agent.

    AF_VSOCK knows no namespaces: where the kernel has vsock's loopback, any container could reach the agent's
    ports. Sockets of other families are reached by file permissions.
    """
    return family != _socket.AF_VSOCK or (isinstance(address, tuple) and address[0] == CID_HOST)
