"""The pod's network inside the guest: interfaces, routes and neighbours as the host describes them.

Owns: the meaning of Kata's network messages. The exchange with the kernel is agent/linux/netlink.py. Called
by agent/service.py; every change is complete when the function returns.
"""

from __future__ import annotations

import errno
import os

from agent import arrival
from agent.api import agent_pb2, types_pb2
from agent.errors import AgentError, InvalidSpec, step_error
from agent.linux import netlink, procfs, syscalls, uevent
from agent.linux.netlink import Address, Link, Netlink, Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable

LINK_SECONDS = 3.0
"""how long update_interface waits for a device that was just plugged (kernel parameter
agent.hotplug_timeout)
"""

RESOLV_CONF = "/etc/resolv.conf"
WRITABLE_RESOLV_CONF = "/run/kata-containers/sandbox/resolv.conf"

_FAMILY = {netlink.AF_INET: types_pb2.v4, netlink.AF_INET6: types_pb2.v6}
_SCOPE_LINK = netlink.SCOPE_LINK


class LinkNotFound(AgentError):
    """No interface has the hardware address; Kata's shim repeats its request while it reads "Link not
    found".
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"Link not found ({what})")


def _parse(field: str, text: str) -> tuple[int, bytes]:
    try:
        return netlink.parse_address(text)
    except OSError:
        raise InvalidSpec(field, f"{text!r} is not an IP address") from None


def _prefix(field: str, text: str, family: int) -> int:
    longest = 128 if family == netlink.AF_INET6 else 32
    if not text.isdigit() or int(text) > longest:
        raise InvalidSpec(field, f"{text!r} is not a prefix length")
    return int(text)


# --- interfaces -------------------------------------------------------------------------------------------


def update_interface(wanted: types_pb2.Interface, seconds: float = LINK_SECONDS) -> types_pb2.Interface:
    """Name, MTU, flags and addresses of the link with `wanted.hwAddr`, then up; the interface as it is
    after.

    Its other addresses go, but for what the kernel made itself (IPv6 link-local). Waits `seconds` for a
    device that is being plugged. Raises LinkNotFound, InvalidSpec, StepError.
    """
    try:
        parsed_mac = netlink.parse_mac(wanted.hwAddr)
    except ValueError:
        parsed_mac = b""
    if not parsed_mac:
        raise InvalidSpec("interface.hwAddr", f"{wanted.hwAddr!r} is not a hardware address")
    mac = netlink.format_mac(parsed_mac)
    addresses = [_wanted_address(address) for address in wanted.IPAddresses]
    try:
        with Netlink() as kernel:
            link = _await_link(kernel, mac, seconds)
            _configure(kernel, link, wanted)
            _replace_addresses(kernel, link.index, addresses)
            kernel.set_link(link.index, up=True)
            return _described(kernel, [link.index])[0]
    except OSError as error:
        raise step_error(f"configure network interface {wanted.name or mac}", error) from error


def _wanted_address(wanted: types_pb2.IPAddress) -> Address:
    family, data = _parse("interface.IPAddresses.address", wanted.address)
    prefix = _prefix("interface.IPAddresses.mask", wanted.mask, family)
    # The host has made sure that the address is unique; waiting for duplicates would delay the pod by a
    # second.
    flags = netlink.IFA_F_NODAD if family == netlink.AF_INET6 else 0
    return Address(0, family, data, prefix, 0, flags)


def _await_link(kernel: Netlink, mac: str, seconds: float) -> Link:
    def look() -> Link | None:
        return next((link for link in kernel.links() if link.mac == mac), None)

    arrival.find("virtio_net")
    link = uevent.wait_for(look, ("net",), seconds)
    if link is None:
        raise LinkNotFound(mac)
    return link


def _configure(kernel: Netlink, link: Link, wanted: types_pb2.Interface) -> None:
    noarp = bool(wanted.raw_flags & netlink.IFF_NOARP)
    if wanted.name and wanted.name != link.name:
        _free_name(kernel, wanted.name)
        kernel.set_link(link.index, up=False)
        kernel.set_link(link.index, name=wanted.name)
    kernel.set_link(link.index, mtu=wanted.mtu, noarp=noarp)


def _free_name(kernel: Netlink, name: str) -> None:
    """Another link that has the name (guests count eth0, eth1 ...) is moved out of the way."""
    holder = next((link for link in kernel.links() if link.name == name), None)
    if holder is not None:
        kernel.set_link(holder.index, up=False)
        kernel.set_link(holder.index, name=f"hako{holder.index}")


def _replace_addresses(kernel: Netlink, index: int, wanted: list[Address]) -> None:
    keep = {(address.address, address.prefix) for address in wanted}
    for present in kernel.addresses():
        kernels_own = present.family == netlink.AF_INET6 and present.scope == _SCOPE_LINK
        if present.index == index and not kernels_own and (present.address, present.prefix) not in keep:
            _ignoring(errno.EADDRNOTAVAIL, kernel.delete_address, present)
    for address in wanted:
        address.index = index
        kernel.add_address(address)


def _ignoring(number: int, change: object, *args: object) -> None:
    try:
        change(*args)  # type: ignore[operator]
    except OSError as error:
        if error.errno != number:
            raise


def list_interfaces() -> agent_pb2.Interfaces:
    """All links with their addresses. Raises StepError."""
    try:
        with Netlink() as kernel:
            return agent_pb2.Interfaces(Interfaces=_described(kernel, None))
    except OSError as error:
        raise step_error("list network interfaces", error) from error


def _described(kernel: Netlink, only: list[int] | None) -> list[types_pb2.Interface]:
    addresses: dict[int, list[types_pb2.IPAddress]] = {}
    for address in kernel.addresses():
        text = netlink.format_address(address.address)
        entry = types_pb2.IPAddress(family=_FAMILY[address.family], address=text, mask=str(address.prefix))
        addresses.setdefault(address.index, []).append(entry)
    return [
        types_pb2.Interface(
            device=link.name,
            name=link.name,
            IPAddresses=addresses.get(link.index, []),
            mtu=link.mtu,
            hwAddr=link.mac,
            type=link.type,
            raw_flags=link.flags & netlink.IFF_NOARP,
        )
        for link in kernel.links()
        if only is None or link.index in only
    ]


# --- routes -----------------------------------------------------------------------------------------------


def update_routes(wanted: Iterable[types_pb2.Route]) -> agent_pb2.Routes:
    """Replace all routes that the kernel did not make itself; the routes as they are after.

    Routes without gateway come first, as the others need them to reach their gateways. Raises StepError,
    InvalidSpec, LinkNotFound.
    """
    try:
        with Netlink() as kernel:
            indices = {link.name: link.index for link in kernel.links()}
            routes = [_wanted_route(route, indices) for route in wanted]
            for present in kernel.routes():
                if present.protocol != netlink.RTPROT_KERNEL:
                    _ignoring(errno.ESRCH, kernel.delete_route, present)
            for route in [r for r in routes if not r.gateway] + [r for r in routes if r.gateway]:
                _ignoring(errno.EEXIST, kernel.add_route, route)
            return _listed(kernel)
    except OSError as error:
        raise step_error("configure routes", error) from error


def _wanted_route(wanted: types_pb2.Route, indices: dict[str, int]) -> Route:
    if wanted.device not in indices:
        raise LinkNotFound(wanted.device)
    family = netlink.AF_INET6 if wanted.family == types_pb2.v6 else netlink.AF_INET
    route = Route(family, indices[wanted.device])
    destination, slash, prefix = wanted.dest.partition("/")
    if destination:
        route.family, route.destination = _parse("routes.dest", destination)
        longest = 8 * len(route.destination)
        route.prefix = _prefix("routes.dest", prefix, route.family) if slash else longest
        if route.prefix == 0:
            route.destination = b""
    if wanted.gateway:
        route.family, route.gateway = _parse("routes.gateway", wanted.gateway)
    if wanted.source:
        _, route.source = _parse("routes.source", wanted.source)
    # RT_SCOPE_* of a v4 route; IPv6 has none. Flags: of those of next hops only ONLINK is a wish, the
    # others are the kernel's remarks.
    route.scope = wanted.scope if route.family == netlink.AF_INET else 0
    route.flags = wanted.flags & netlink.RTNH_F_ONLINK
    route.mtu = wanted.mtu
    return route


def list_routes() -> agent_pb2.Routes:
    """Unicast routes of the main table, the kernel's own included. Raises StepError."""
    try:
        with Netlink() as kernel:
            return _listed(kernel)
    except OSError as error:
        raise step_error("list routes", error) from error


def _listed(kernel: Netlink) -> agent_pb2.Routes:
    names = {link.index: link.name for link in kernel.links()}
    return agent_pb2.Routes(
        Routes=[
            types_pb2.Route(
                dest=f"{netlink.format_address(route.destination)}/{route.prefix}"
                if route.destination
                else "",
                gateway=netlink.format_address(route.gateway) if route.gateway else "",
                device=names.get(route.index, ""),
                source=netlink.format_address(route.source) if route.source else "",
                scope=route.scope,
                family=_FAMILY[route.family],
                flags=route.flags,
                mtu=route.mtu,
            )
            for route in kernel.routes()
        ]
    )


# --- neighbours, name servers, counters -------------------------------------------------------------------


def add_neighbours(wanted: Iterable[types_pb2.ARPNeighbor]) -> None:
    """Enter hardware addresses of hosts on the link; state 0 means permanent. Raises like update_routes."""
    try:
        with Netlink() as kernel:
            indices = {link.name: link.index for link in kernel.links()}
            for entry in wanted:
                if entry.device not in indices:
                    raise LinkNotFound(entry.device)
                _, address = _parse("neighbors.toIPAddress", entry.toIPAddress.address)
                state = entry.state or netlink.NUD_PERMANENT
                kernel.add_neighbour(indices[entry.device], address, entry.lladdr, state, entry.flags & 0xFF)
    except ValueError:
        raise InvalidSpec("neighbors.lladdr", "is not a hardware address") from None
    except OSError as error:
        raise step_error("add neighbours", error) from error


def write_dns(lines: Iterable[str], path: str = RESOLV_CONF, writable: str = WRITABLE_RESOLV_CONF) -> None:
    """Make the pod's resolv.conf of the lines that the host sent. Raises StepError.

    The guest's root is read-only: there the file is written at `writable` and mounted over `path`.
    """
    text = "".join([line.rstrip("\n") + "\n" for line in lines])
    try:
        try:
            _write(path, text)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            os.makedirs(os.path.dirname(writable), exist_ok=True)
            _write(writable, text)
            syscalls.mount(writable, path, None, syscalls.MS_BIND)
    except OSError as error:
        raise step_error("write DNS configuration", error) from error


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o644)


def counters() -> list[agent_pb2.NetworkStats]:
    """Traffic of all links but lo. Raises StepError."""
    try:
        found = procfs.network_counters()
    except OSError as error:
        raise step_error("read network counters", error) from error
    return [agent_pb2.NetworkStats(name=name, **values) for name, values in found.items() if name != "lo"]
