"""What the kernel says about the links, addresses, routes and neighbours of the current network namespace.

Owns: pyroute2's dumps turned into plain dicts, the input of choose.py. Must not know: what becomes of them.
Only the child imports it. Attribute names are rtnetlink(7)'s.
"""

from __future__ import annotations

import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Fact = dict[str, Any]

FAMILIES = (socket.AF_INET, socket.AF_INET6)


def read(ipr: Any) -> dict[str, list[Fact]]:
    """All facts of the namespace that `ipr` (pyroute2.IPRoute) was opened in."""
    return {
        "links": [link_fact(message) for message in ipr.get_links()],
        "addresses": [_address(m) for m in ipr.get_addr() if m["family"] in FAMILIES],
        "routes": [_route(m) for family in FAMILIES for m in ipr.get_routes(family=family)],
        "neighbours": [_neighbour(m) for family in FAMILIES for m in ipr.get_neighbours(family=family)],
    }


def link_fact(message: Any) -> Fact:
    """One link; `kind` is "" for hardware."""
    info = message.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    return {
        "index": message["index"],
        "name": message.get_attr("IFLA_IFNAME"),
        "kind": (info.get_attr("IFLA_INFO_KIND") if info else "") or "",
        "mac": message.get_attr("IFLA_ADDRESS") or "",
        "mtu": message.get_attr("IFLA_MTU") or 0,
        "flags": message["flags"],
        "type": message["ifi_type"],
        "multi_queue": bool(data and hasattr(data, "get_attr") and data.get_attr("IFLA_TUN_MULTI_QUEUE")),
    }


def _address(message: Any) -> Fact:
    return {
        "index": message["index"],
        "family": int(message["family"]),
        # IFA_ADDRESS is the peer on a point-to-point link; IPv6 has IFA_LOCAL only then.
        "local": message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"),
        "prefix": message["prefixlen"],
        "flags": message.get_attr("IFA_FLAGS") or message["flags"],
        "proto": _number(message.get_attr("IFA_PROTO")),
    }


def _number(value: Any) -> int:
    """A one-byte attribute, which older pyroute2 gives as a hex string because it does not know it."""
    if isinstance(value, int):
        return value
    try:
        return int(str(value), 16)
    except ValueError:
        return 0


def _route(message: Any) -> Fact:
    hops = message.get_attr("RTA_MULTIPATH") or []
    hop = hops[0] if hops else message
    metrics = message.get_attr("RTA_METRICS")
    return {
        "family": int(message["family"]),
        "dst": message.get_attr("RTA_DST") or "",
        "dst_len": message["dst_len"],
        "gateway": hop.get_attr("RTA_GATEWAY") or "",
        "foreign_gateway": hop.get_attr("RTA_VIA") is not None,
        "oif": hops[0]["oif"] if hops else message.get_attr("RTA_OIF"),
        "hops": max(1, len(hops)),
        "source": message.get_attr("RTA_PREFSRC") or "",
        "scope": message["scope"],
        "proto": message["proto"],
        "type": message["type"],
        "table": message.get_attr("RTA_TABLE") or message["table"],
        "flags": message["flags"],
        "metric": message.get_attr("RTA_PRIORITY") or 0,
        "mtu": (metrics.get_attr("RTAX_MTU") if metrics else 0) or 0,
    }


def _neighbour(message: Any) -> Fact:
    return {
        "index": message["ifindex"],
        "family": int(message["family"]),
        "dst": message.get_attr("NDA_DST") or "",
        "mac": message.get_attr("NDA_LLADDR") or "",
        "state": message["state"],
        "flags": message["flags"],
    }
