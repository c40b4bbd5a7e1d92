"""Which links, addresses, routes and neighbours of a namespace go into the guest: a pure function of its
dumps.

Owns: these choices. Must not know: pyroute2, sockets, the VM. Called by child.py with the facts of
links.py; all values are plain dicts because they cross a process boundary as JSON.

The choices are Kata's (links without an address are skipped, routes of protocol kernel are left to the
guest's kernel, permanent neighbours go along) except where Kata's lose something: any Ethernet link is
carried, not only five kinds; a kernel route that the address alone does not bring (a point-to-point peer)
is kept; link-local addresses that the kernel made for itself are left out, since the guest's kernel makes
the same one from the same MAC.
"""

from __future__ import annotations

import ipaddress

from shim.network import tapname

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Fact = dict[str, Any]

# linux/if.h, linux/if_arp.h
IFF_LOOPBACK = 0x8
IFF_NOARP = 0x80
ARPHRD_ETHER = 1
# linux/if_addr.h
IFA_F_TEMPORARY = 0x01
IFA_F_DADFAILED = 0x08
IFAPROT_KERNEL_LL = 2
# linux/rtnetlink.h
RTPROT_KERNEL = 2
RT_TABLE_MAIN = 254
RTN_UNICAST = 1
RTM_F_CLONED = 0x200
RTNH_F_ONLINK = 4
# linux/neighbour.h
NUD_STALE = 0x04
NUD_PERMANENT = 0x80
NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10  # reachable, stale, delay, probe: an address is known
NTF_PROXY = 0x08

AF_INET = 2
AF_INET6 = 10
FAMILY = {AF_INET: 4, AF_INET6: 6}


def select_links(facts: Fact, known: list[int]) -> tuple[list[Fact], list[Fact]]:
    """The links to carry (with their passable addresses) and what is skipped; `known` are carried already."""
    chosen, skipped = [], []
    for link in facts["links"]:
        if link["flags"] & IFF_LOOPBACK or link["index"] in known or _ours(link):
            continue
        addresses = _addresses(facts["addresses"], link)
        if link["type"] != ARPHRD_ETHER and addresses:
            skipped.append(
                {"what": f"link {link['name']}", "reason": f"no Ethernet link (type {link['type']})"}
            )
        elif addresses:
            chosen.append({**link, "noarp": bool(link["flags"] & IFF_NOARP), "addresses": addresses})
    return chosen, skipped


def _ours(link: Fact) -> bool:
    return link["kind"] == "tun" and tapname.link_of(link["name"]) is not None


def _addresses(addresses: list[Fact], link: Fact) -> list[Fact]:
    return [
        {"family": FAMILY[item["family"]], "address": item["local"], "prefix": item["prefix"]}
        for item in addresses
        if item["index"] == link["index"] and item["family"] in FAMILY and _passable(item, link["mac"])
    ]


def _passable(address: Fact, mac: str) -> bool:
    ip = ipaddress.ip_address(address["local"])
    if ip.is_loopback or address["flags"] & (IFA_F_DADFAILED | IFA_F_TEMPORARY):
        return False
    return not (ip.version == 6 and ip.is_link_local and _kernel_made(address, ip, mac))


def _kernel_made(address: Fact, ip: ipaddress.IPv4Address | ipaddress.IPv6Address, mac: str) -> bool:
    return address["proto"] == IFAPROT_KERNEL_LL or int(ip) & (2**64 - 1) == eui64(mac)


def eui64(mac: str) -> int:
    """The interface identifier that the kernel derives from a MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return int.from_bytes(bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:], "big")


def select_routes(facts: Fact, carried: list[int]) -> tuple[list[Fact], list[Fact]]:
    """Routes over the links `carried` (indexes), those without a gateway first, then by metric; and what is
    skipped.
    """
    names = {link["index"]: link["name"] for link in facts["links"]}
    implied = _implied(facts["addresses"])
    chosen, skipped = [], []
    for route in facts["routes"]:
        if route["oif"] not in carried or route["flags"] & RTM_F_CLONED or _by_kernel(route, implied):
            continue
        reason = _unfit(route)
        if reason:
            skipped.append({"what": f"route {_prefix(route) or 'default'}", "reason": reason})
            continue
        chosen.append(_route(route, names[route["oif"]]))
        if route["hops"] > 1:
            skipped.append(
                {"what": f"route {_prefix(route) or 'default'}", "reason": "only its first hop is used"}
            )
    chosen.sort(key=lambda item: (bool(item["gateway"]), item["metric"]))
    return chosen, skipped


def _implied(addresses: list[Fact]) -> set[tuple[int, str]]:
    """The (link, prefix) pairs whose route the guest's kernel makes by itself when it gets the addresses."""
    networks = set()
    for item in addresses:
        network = ipaddress.ip_network((item["local"], item["prefix"]), strict=False)
        networks.add((item["index"], str(network)))
    return networks


def _by_kernel(route: Fact, implied: set[tuple[int, str]]) -> bool:
    """Whether the guest's kernel makes this route by itself (local, broadcast, multicast ones too)."""
    if route["type"] != RTN_UNICAST and route["proto"] == RTPROT_KERNEL:
        return True
    if route["proto"] != RTPROT_KERNEL:
        return False
    prefix = _prefix(route)
    return (route["oif"], prefix) in implied or prefix.startswith(("fe80:", "ff00:"))


def _unfit(route: Fact) -> str:
    """Why the agent protocol cannot carry the route, "" if it can."""
    if route["table"] != RT_TABLE_MAIN:
        return f"in routing table {route['table']}; the guest has only the main table"
    if route["type"] != RTN_UNICAST:
        return f"of type {route['type']}, not unicast"
    if route["foreign_gateway"]:
        return "its gateway is of another address family"
    return ""


def _prefix(route: Fact) -> str:
    return f"{route['dst']}/{route['dst_len']}" if route["dst"] else ""


def _route(route: Fact, device: str) -> Fact:
    return {
        "family": FAMILY[route["family"]],
        "dest": _prefix(route),
        "gateway": route["gateway"],
        "device": device,
        "source": route["source"],
        "scope": route["scope"],
        "flags": route["flags"] & RTNH_F_ONLINK,
        "mtu": route["mtu"],
        "metric": route["metric"],
    }


def select_neighbours(facts: Fact, carried: list[int], routes: list[Fact]) -> list[Fact]:
    """Permanent neighbours on the links `carried`, and the gateways of `routes` as far as they are known.

    A gateway's entry goes as STALE: usable at once, and verified by the guest, never pinned.
    """
    names = {link["index"]: link["name"] for link in facts["links"]}
    gateways = {(route["device"], route["gateway"]) for route in routes if route["gateway"]}
    chosen = []
    for entry in facts["neighbours"]:
        device = names.get(entry["index"], "")
        if entry["index"] not in carried or not entry["mac"] or entry["flags"] & NTF_PROXY:
            continue
        state = _neighbour_state(entry, is_gateway=(device, entry["dst"]) in gateways)
        if state:
            family = FAMILY[entry["family"]]
            chosen.append(
                {
                    "family": family,
                    "address": entry["dst"],
                    "device": device,
                    "mac": entry["mac"],
                    "state": state,
                    "flags": entry["flags"],
                }
            )
    return chosen


def _neighbour_state(entry: Fact, *, is_gateway: bool) -> int:
    if entry["state"] & NUD_PERMANENT:
        return NUD_PERMANENT
    return NUD_STALE if is_gateway and entry["state"] & NUD_USABLE else 0


def duplicate_mac(links: list[Fact]) -> str:
    """A MAC that two of `links` have ("" if none): the agent finds its link by the MAC alone."""
    seen: set[str] = set()
    for link in links:
        if link["mac"] in seen:
            return str(link["mac"])
        seen.add(link["mac"])
    return ""
