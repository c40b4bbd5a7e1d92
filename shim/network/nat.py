"""The network of `hako run`: a bridge, a namespace per container on it, masquerading behind the host.

Owns: acquiring and releasing, in the right order, under one lock, with the last user taking everything
away. Must not know: VMs, images. Called by the CLI (`acquire`) and by whoever deletes the container
(`release`). Acts in the network namespace of the calling process. State: ipam.py; netlink: bridge.py in the
child; packet filter: nft.py.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from shim import paths
from shim.errors import AlreadyExists, HakoError
from shim.network import ipam, nft, resolv, worker

BRIDGE = "hako0"
IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"
ROUTES = "/proc/net/route"
SIOCGIFMTU = 0x8921
DEFAULT_MTU = 1500


@dataclass(frozen=True, slots=True)
class NetnsHandle:
    """A container's place on the network. `path`: host path of its namespace, for `attach`; `resolv_conf`:
    text.
    """

    path: str
    address: str
    prefix: int
    gateway: str
    mtu: int
    resolv_conf: str
    warnings: tuple[str, ...] = ()


def acquire(
    container_id: str,
    *,
    bridge: str = BRIDGE,
    subnet: str = "",
    mtu: int = 0,
    timeout: float = worker.DEFAULT_TIMEOUT,
) -> NetnsHandle:
    """Give the container a namespace with an address on the bridge; the first user brings the network up.

    `subnet` is preferred, if nothing on the host is in its way; `mtu` 0: that of the link with the default
    route. Raises AlreadyExists (the id has one), NoAddress, NetworkError, process.CommandFailed (nft);
    nothing is left then.
    """
    sources = _resolv_sources()
    with ipam.locked() as state:
        _take_away(state, ipam.abandoned(state), timeout)
        if container_id in state.users:
            raise AlreadyExists("it has a network already", step="acquire network", object=container_id)
        fresh = not state.bridge
        if fresh:
            _decide(state, bridge, [subnet] if subnet else [], sources)
        user = ipam.new_user(state, container_id, _netns_path(container_id))
        ipam.save(state)
        try:
            mtu = mtu or _uplink_mtu()
            _bring_up(_request(state, user, mtu, fresh=fresh), timeout)
            blockers = nft.blockers() if fresh else []
        except BaseException:
            _take_away(state, [user], timeout)
            raise
        user.ready = True
        ipam.save(state)
    return _handle(state, user, mtu, sources, blockers)


def release(container_id: str, timeout: float = worker.DEFAULT_TIMEOUT) -> None:
    """Take the container's namespace away, with the last one bridge, table, state and forwarding as well.

    An id without a network is no error. Raises NetworkError, process.CommandFailed.
    """
    if not os.path.isdir(ipam.directory()):
        return
    with ipam.locked() as state:
        _take_away(state, [user for user in state.users.values() if user.id == container_id], timeout)


def sweep(alive: Callable[[str], bool], timeout: float = worker.DEFAULT_TIMEOUT) -> list[str]:
    """Release every id for which `alive` says no (crash leftovers), and half-made ones; answers with them."""
    if not os.path.isdir(ipam.directory()):
        return []
    with ipam.locked() as state:
        gone = ipam.abandoned(state)
        gone += [user for user in state.users.values() if user not in gone and not alive(user.id)]
        _take_away(state, gone, timeout)
    return [user.id for user in gone]


def _decide(state: ipam.State, bridge: str, preferred: list[str], sources: list[str]) -> None:
    """Decide what the network looks like, and note what has to be restored when it ends."""
    routes = ipam.routes_of(_read(ROUTES), beside=bridge)
    servers = [server for text in sources for server in resolv.servers(text) if resolv.reachable(server)]
    state.bridge = bridge
    state.subnet = ipam.choose_subnet(preferred, routes, servers)
    state.forwarding_was = _read(IP_FORWARD).strip()


def _request(state: ipam.State, user: ipam.User, mtu: int, *, fresh: bool) -> dict[str, object]:
    """What bridge.up has to make."""
    gateway = ipam.gateway(state.subnet)
    return {
        "bridge": state.bridge,
        "bridge_mac": ipam.mac_of(gateway),
        "subnet": state.subnet,
        "gateway": gateway,
        "prefix": _prefix(state.subnet),
        "mtu": mtu,
        "netns": user.netns,
        "link": user.link,
        "mac": ipam.mac_of(user.address),
        "address": user.address,
        "fresh": fresh,
    }


def _bring_up(request: dict[str, object], timeout: float) -> None:
    """Links and namespace in the child; packet filter and forwarding by us, while the child starts."""
    os.makedirs(os.path.dirname(str(request["netns"])), mode=0o755, exist_ok=True)
    pending = worker.start("nat_up", request, [], timeout, str(request["netns"]))
    try:
        nft.apply(str(request["bridge"]), str(request["subnet"]))
        _set_forwarding("1")
    except BaseException:
        pending.cancel()
        raise
    pending.result()


def _take_away(state: ipam.State, users: list[ipam.User], timeout: float) -> None:
    """Remove these users' namespaces from the kernel and from `state`; after the last one, everything."""
    if not users:
        return
    last = len(users) == len(state.users)
    request = {
        "bridge": state.bridge,
        "last": last,
        "users": [{"netns": u.netns, "link": u.link} for u in users],
    }
    worker.call("nat_down", request, [], timeout, state.bridge)
    if last:
        nft.remove()
        if state.forwarding_was:
            _set_forwarding(state.forwarding_was)
        state.bridge = state.subnet = state.forwarding_was = ""
    for user in users:
        del state.users[user.id]
    ipam.save(state)


def _set_forwarding(value: str) -> None:
    if _read(IP_FORWARD).strip() == value:
        return  # writing would reset the forwarding of every link
    try:
        with open(IP_FORWARD, "w", encoding="ascii") as file:
            file.write(value)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise worker.NetworkError(
            reason, step="set IPv4 forwarding", object=IP_FORWARD, errno=exc.errno or 0
        ) from exc


def _handle(
    state: ipam.State, user: ipam.User, mtu: int, sources: list[str], blockers: list[str]
) -> NetnsHandle:
    text, warning = resolv.for_containers(sources)
    warnings = [warning] if warning else []
    if blockers:
        chains = ", ".join(blockers)
        warnings.append(
            f"another packet filter drops forwarded packets ({chains}): let {state.bridge} through there"
        )
    return NetnsHandle(
        path=user.netns,
        address=user.address,
        prefix=_prefix(state.subnet),
        gateway=ipam.gateway(state.subnet),
        mtu=mtu,
        resolv_conf=text,
        warnings=tuple(warnings),
    )


def _prefix(subnet: str) -> int:
    return ipaddress.IPv4Network(subnet).prefixlen


def _netns_path(container_id: str) -> str:
    if "/" in container_id or container_id in ("", ".", ".."):
        raise HakoError("not a usable id", step="acquire network", object=repr(container_id))
    return os.path.join(paths.state_root(), "netns", container_id)


def _uplink_mtu() -> int:
    """MTU of the link that the default route leaves by, so that no packet is too large for it."""
    name = ipam.default_link(_read(ROUTES))
    if not name:
        return DEFAULT_MTU
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        answer = fcntl.ioctl(sock, SIOCGIFMTU, struct.pack("16si20x", name.encode(), 0))
    return int(struct.unpack("16si20x", answer)[1])


def _resolv_sources() -> list[str]:
    return [text for text in map(_read_if_there, resolv.SOURCES) if text]


def _read_if_there(path: str) -> str:
    try:
        return _read(path)
    except OSError:
        return ""


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
