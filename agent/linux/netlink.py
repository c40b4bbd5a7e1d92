"""A small rtnetlink: links, addresses, routes and neighbours of this network namespace.

Owns: message encoding and decoding, the request-acknowledgement exchange, dumps. Knows nothing of pods.
Numbers and layouts: linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h,
linux/neighbour.h. Called by agent/network.py and agent/init.py.

Addresses are bytes (4 or 16) inside and text at the edges; an index is the kernel's number of a link.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

AF_INET, AF_INET6 = 2, 10

_NETLINK_ROUTE = 0
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ATTRIBUTE_TYPE = 0x3FFF

_ERROR, _DONE = 2, 3
_F_REQUEST, _F_ACK, _F_DUMP, _F_DUMP_INTR = 1, 4, 0x300, 0x10
_F_CAPPED, _F_ACK_TLVS = 0x100, 0x200
_F_CREATE, _F_EXCL, _F_REPLACE = 0x400, 0x200, 0x100

_NEWLINK, _GETLINK = 16, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWNEIGH = 28

_BUFFER = 1 << 17
_MOST_MESSAGES = 65536
_DUMP_ATTEMPTS = 5
_SECONDS = 5.0

IFF_UP, IFF_NOARP = 0x1, 0x80
IFA_F_NODAD, IFA_F_PERMANENT = 0x02, 0x80
RT_TABLE_MAIN = 254
RTPROT_KERNEL, RTPROT_BOOT = 2, 3
RTN_UNICAST = 1
RTNH_F_ONLINK = 4
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_HOST = 0, 253, 254
NUD_PERMANENT = 0x80


class NetlinkError(OSError):
    """The kernel refused a request; `strerror` holds its own words where it has some."""


class Link:
    """A network interface."""

    __slots__ = ("flags", "index", "mac", "mtu", "name", "type")

    def __init__(self, index: int, name: str, mac: str, mtu: int, flags: int, type: str) -> None:
        self.index = index
        self.name = name
        self.mac = mac
        """lower case, colons; "" where the link has none"""
        self.mtu = mtu
        self.flags = flags
        """IFF_*"""
        self.type = type
        """"veth", "bridge" ...; "" for a device, as virtio-net is"""


class Address:
    """An address of a link."""

    __slots__ = ("address", "family", "flags", "index", "prefix", "scope")

    def __init__(
        self, index: int, family: int, address: bytes, prefix: int, scope: int = 0, flags: int = 0
    ) -> None:
        self.index = index
        self.family = family
        self.address = address
        self.prefix = prefix
        self.scope = scope
        self.flags = flags
        """IFA_F_*"""


class Route:
    """A unicast route of the main table; empty bytes mean absent (as destination: the default route)."""

    __slots__ = (
        "destination", "family", "flags", "gateway", "index", "mtu", "prefix", "priority", "protocol",
        "scope", "source",
    )  # fmt: skip

    def __init__(self, family: int, index: int) -> None:
        self.family = family
        self.index = index
        self.destination = b""
        self.prefix = 0
        self.gateway = b""
        self.source = b""
        self.scope = SCOPE_UNIVERSE
        self.protocol = RTPROT_BOOT
        self.flags = 0
        self.priority = 0
        self.mtu = 0


# --- encoding ---------------------------------------------------------------------------------------------


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute with its padding."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def attribute_u32(kind: int, value: int) -> bytes:
    """One attribute that holds a number."""
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type; stops at the first that does not fit."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            break
        found[kind & _ATTRIBUTE_TYPE] = data[offset + 4 : offset + length]
        offset += length + (-length % 4)
    return found


def _u32(data: bytes | None) -> int:
    return int.from_bytes(data[:4], "little") if data and len(data) >= 4 else 0


def messages(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, payload) of each message in a datagram. Raises ValueError for a broken one.
    """
    found = []
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise ValueError(f"netlink message of {length} bytes in a datagram of {len(data)}")
        found.append((kind, flags, sequence, data[offset + _HEADER.size : offset + length]))
        offset += length + (-length % 4)
    return found


def parse_address(text: str) -> tuple[int, bytes]:
    """(family, bytes) of an address. Raises OSError for what is none."""
    family = AF_INET6 if ":" in text else AF_INET
    return family, _socket.inet_pton(family, text)


def format_address(data: bytes) -> str:
    """The text of an address."""
    return _socket.inet_ntop(AF_INET6 if len(data) == 16 else AF_INET, data)


def parse_mac(text: str) -> bytes:
    """Bytes of a hardware address; "" is none. Raises ValueError."""
    return bytes.fromhex(text.replace(":", "").replace("-", ""))


def format_mac(data: bytes) -> str:
    """The text of a hardware address."""
    return ":".join([f"{byte:02x}" for byte in data])


# --- decoding ---------------------------------------------------------------------------------------------


def _link(payload: bytes) -> Link | None:
    if len(payload) < 16:
        return None
    _, _, _, index, flags, _ = struct.unpack_from("=BBHiII", payload)
    found = attributes(payload[16:])
    name = found.get(3, b"").rstrip(b"\0").decode("utf-8", "replace")
    kind = attributes(found.get(18, b"")).get(1, b"").rstrip(b"\0").decode("ascii", "replace")
    return Link(index, name, format_mac(found.get(1, b"")), _u32(found.get(4)), flags, kind)


def _address(payload: bytes) -> Address | None:
    if len(payload) < 8:
        return None
    family, prefix, flags, scope, index = struct.unpack_from("=BBBBI", payload)
    found = attributes(payload[8:])
    # IFA_LOCAL is the own address, IFA_ADDRESS the peer's on a point-to-point link.
    address = found.get(2) or found.get(1)
    if not address or family not in (AF_INET, AF_INET6):
        return None
    return Address(index, family, address, prefix, scope, _u32(found.get(8)) or flags)


def _route(payload: bytes) -> Route | None:
    if len(payload) < 12:
        return None
    family, prefix, _, _, table, protocol, scope, kind, flags = struct.unpack_from("=BBBBBBBBI", payload)
    found = attributes(payload[12:])
    if (_u32(found.get(15)) or table) != RT_TABLE_MAIN or kind != RTN_UNICAST:
        return None
    if family not in (AF_INET, AF_INET6):
        return None
    route = Route(family, _u32(found.get(4)))
    route.destination, route.prefix = found.get(1, b""), prefix
    route.gateway, route.source = found.get(5, b""), found.get(7, b"")
    route.scope, route.protocol, route.flags = scope, protocol, flags
    route.priority = _u32(found.get(6))
    route.mtu = _u32(attributes(found.get(8, b"")).get(2))
    return route


# --- the exchange -----------------------------------------------------------------------------------------


class Netlink:
    """A socket to the kernel; a context manager. Every method raises NetlinkError or OSError."""

    def __init__(self) -> None:
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
        self._socket = _socket.socket(_socket.AF_NETLINK, kind, _NETLINK_ROUTE)
        self._socket.settimeout(_SECONDS)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _send(self, kind: int, flags: int, payload: bytes) -> None:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(payload), kind, _F_REQUEST | flags, self._sequence, 0)
        self._socket.send(header + payload)

    def _receive(self) -> list[tuple[int, int, int, bytes]]:
        data, _, flags, sender = self._socket.recvmsg(_BUFFER)
        if flags & _socket.MSG_TRUNC:
            raise NetlinkError(errno.EMSGSIZE, "netlink answer is too long")
        if sender[0] != 0:
            return []  # only the kernel's word counts
        return messages(data)

    def request(self, kind: int, flags: int, payload: bytes) -> None:
        """Send a change and wait for its acknowledgement."""
        self._send(kind, flags | _F_ACK, payload)
        while True:
            for answer, answer_flags, sequence, body in self._receive():
                if answer == _ERROR and sequence == self._sequence:
                    _raise_error(answer_flags, body)
                    return

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """The payloads of all objects of a kind, consistent: a dump that a change interrupted is repeated.
        """
        for _ in range(_DUMP_ATTEMPTS):
            self._send(kind, _F_DUMP, payload)
            found, interrupted = self._collect()
            if not interrupted:
                return found
        raise NetlinkError(errno.EINTR, "the network changes faster than it can be listed")

    def _collect(self) -> tuple[list[bytes], bool]:
        found: list[bytes] = []
        interrupted = False
        while True:
            for answer, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(flags & _F_DUMP_INTR)
                if answer == _ERROR:
                    _raise_error(flags, body)
                if answer in (_DONE, _ERROR):
                    return found, interrupted
                if len(found) >= _MOST_MESSAGES:
                    raise NetlinkError(errno.EMSGSIZE, "netlink dump is too long")
                found.append(body)

    # --- links --------------------------------------------------------------------------------------------

    def links(self) -> list[Link]:
        """All links."""
        found = [_link(body) for body in self.dump(_GETLINK, struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0))]
        return [link for link in found if link is not None]

    def set_link(
        self,
        index: int,
        *,
        up: bool | None = None,
        noarp: bool | None = None,
        name: str = "",
        mtu: int = 0,
        mac: str = "",
    ) -> None:
        """Change what is given. The kernel renames a link only while it is down."""
        flags = change = 0
        for wanted, bit in ((up, IFF_UP), (noarp, IFF_NOARP)):
            if wanted is not None:
                change |= bit
                flags |= bit if wanted else 0
        payload = struct.pack("=BBHiII", 0, 0, 0, index, flags, change)
        if mac:
            payload += attribute(1, parse_mac(mac))
        if name:
            payload += attribute(3, name.encode() + b"\0")
        if mtu:
            payload += attribute_u32(4, mtu)
        self.request(_NEWLINK, 0, payload)

    # --- addresses ----------------------------------------------------------------------------------------

    def addresses(self) -> list[Address]:
        """All addresses of both families."""
        found = [_address(body) for body in self.dump(_GETADDR, struct.pack("=BBBBI", 0, 0, 0, 0, 0))]
        return [address for address in found if address is not None]

    def add_address(self, address: Address) -> None:
        """Add or replace an address; IPv4 gets the broadcast address of its network."""
        flags = address.flags | IFA_F_PERMANENT
        payload = _address_payload(address) + attribute_u32(8, flags)
        if address.family == AF_INET and address.prefix < 31:
            number = int.from_bytes(address.address, "big") | ((1 << (32 - address.prefix)) - 1)
            payload += attribute(4, number.to_bytes(4, "big"))
        self.request(_NEWADDR, _F_CREATE | _F_REPLACE, payload)

    def delete_address(self, address: Address) -> None:
        """Remove an address."""
        self.request(_DELADDR, 0, _address_payload(address))

    # --- routes -------------------------------------------------------------------------------------------

    def routes(self) -> list[Route]:
        """All unicast routes of the main table, of both families."""
        found = [
            _route(body)
            for family in (AF_INET, AF_INET6)
            for body in self.dump(_GETROUTE, struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0))
        ]
        return [route for route in found if route is not None]

    def add_route(self, route: Route) -> None:
        """Add a route; EEXIST where an equal one is there."""
        self.request(_NEWROUTE, _F_CREATE | _F_EXCL, _route_payload(route))

    def delete_route(self, route: Route) -> None:
        """Remove a route."""
        self.request(_DELROUTE, 0, _route_payload(route))

    # --- neighbours ---------------------------------------------------------------------------------------

    def add_neighbour(self, index: int, address: bytes, mac: str, state: int, flags: int) -> None:
        """Add or replace an entry of the ARP or ND table; `state` NUD_*, `flags` NTF_*."""
        family = AF_INET6 if len(address) == 16 else AF_INET
        payload = struct.pack("=BBHiHBB", family, 0, 0, index, state, flags, 0)
        payload += attribute(1, address)
        if mac:
            payload += attribute(2, parse_mac(mac))
        self.request(_NEWNEIGH, _F_CREATE | _F_REPLACE, payload)


def _address_payload(address: Address) -> bytes:
    head = struct.pack(
        "=BBBBI", address.family, address.prefix, address.flags & 0xFF, address.scope, address.index
    )
    return head + attribute(2, address.address) + attribute(1, address.address)


def _route_payload(route: Route) -> bytes:
    head = struct.pack(
        "=BBBBBBBBI", route.family, route.prefix, 0, 0, RT_TABLE_MAIN, route.protocol, route.scope,
        RTN_UNICAST, route.flags,
    )  # fmt: skip
    for kind, data in ((1, route.destination), (5, route.gateway), (7, route.source)):
        if data:
            head += attribute(kind, data)
    for kind, number in ((4, route.index), (6, route.priority)):
        if number:
            head += attribute_u32(kind, number)
    return head + (attribute(8, attribute_u32(2, route.mtu)) if route.mtu else b"")


def _raise_error(flags: int, body: bytes) -> None:
    """Raise what an NLMSG_ERROR says; its number 0 is the acknowledgement."""
    (number,) = struct.unpack_from("=i", body)
    if number == 0:
        return
    words = ""
    if flags & _F_ACK_TLVS:
        # The request's header follows the number, and all of the request where it is not capped.
        length = _HEADER.size if flags & _F_CAPPED else _HEADER.unpack_from(body, 4)[0]
        words = attributes(body[4 + length :]).get(1, b"").rstrip(b"\0").decode("utf-8", "replace")
    text = os.strerror(-number)
    raise NetlinkError(-number, f"{text}: {words}" if words else text)
