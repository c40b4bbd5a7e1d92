"""Which of a namespace's links, addresses, routes and neighbours the guest gets (shim/network/choose.py)."""

from __future__ import annotations

from typing import Any

import pytest

from shim.network import choose, tapname

MAC = "02:00:00:00:00:01"
LINK_LOCAL = "fe80::ff:fe00:1"  # EUI-64 of MAC


def link(index: int = 2, name: str = "eth0", **changes: Any) -> dict[str, Any]:
    plain = {"kind": "veth", "mac": MAC, "mtu": 1500, "flags": 0x1043, "type": 1, "multi_queue": False}
    return {"index": index, "name": name, **plain, **changes}


def address(local: str = "10.0.0.2", prefix: int = 24, **changes: Any) -> dict[str, Any]:
    family = 10 if ":" in local else 2
    return {
        "index": 2,
        "family": family,
        "local": local,
        "prefix": prefix,
        "flags": 0x80,
        "proto": 0,
    } | changes


def route(dst: str = "", dst_len: int = 0, **changes: Any) -> dict[str, Any]:
    plain = {
        "gateway": "",
        "foreign_gateway": False,
        "oif": 2,
        "hops": 1,
        "source": "",
        "scope": 0,
        "proto": 4,
    }
    plain |= {"type": 1, "table": 254, "flags": 0, "metric": 0, "mtu": 0}
    return {"family": 10 if ":" in dst else 2, "dst": dst, "dst_len": dst_len, **plain, **changes}


def facts(**parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"links": [link()], "addresses": [address()], "routes": [], "neighbours": []} | parts


def carried_addresses(*addresses: dict[str, Any]) -> list[str]:
    chosen, _ = choose.select_links(facts(addresses=list(addresses)), [])
    return [item["address"] for entry in chosen for item in entry["addresses"]]


@pytest.mark.parametrize(
    ("kind", "type"), [("veth", 1), ("macvlan", 1), ("ipvlan", 1), ("vlan", 1), ("bridge", 1), ("", 1)]
)
def test_every_kind_of_ethernet_link_is_carried(kind: str, type: int) -> None:
    """The kind of a link does not matter, hardware included, as long as it speaks Ethernet."""
    chosen, skipped = choose.select_links(facts(links=[link(kind=kind, type=type)]), [])
    assert [item["name"] for item in chosen] == ["eth0"] and not skipped


@pytest.mark.parametrize("left_out", [link(flags=0x8), link(name="hako5", kind="tun"), link(index=9)])
def test_links_that_are_nobodys_are_left_out(left_out: dict[str, Any]) -> None:
    """Loopback, our own taps and links without an address are not carried."""
    assert choose.select_links(facts(links=[left_out]), []) == ([], [])


def test_known_links_are_left_out() -> None:
    """A rescan does not carry a link twice."""
    assert choose.select_links(facts(), [2]) == ([], [])


def test_a_tap_of_somebody_else_called_like_ours_is_no_tap_of_ours() -> None:
    """Only `hako` and a number is our name."""
    assert tapname.link_of("hako12") == 12
    assert [tapname.link_of(name) for name in ("hako", "hakox", "12", "tap0", "hako-1")] == [None] * 5


def test_no_link_local_duplicates() -> None:
    """Link-local addresses that the kernel made are left to the guest's kernel; one set by hand goes."""
    assert carried_addresses(address(), address(LINK_LOCAL, 64)) == ["10.0.0.2"]
    assert carried_addresses(address(), address("fe80::1234", 64, proto=2)) == ["10.0.0.2"]
    assert carried_addresses(address("fe80::1", 64)) == ["fe80::1"]


def test_unusable_addresses_are_left_out() -> None:
    """Failed duplicate detection, temporary and loopback addresses stay behind."""
    failed, temporary = address("fd00::2", 64, flags=0x08), address("fd00::3", 64, flags=0x01)
    assert carried_addresses(failed, temporary, address("127.0.0.2", 8)) == []


def test_noarp_is_told() -> None:
    """A link without ARP (ipvlan in mode l3) is marked, so that the guest does not ask either."""
    chosen, _ = choose.select_links(facts(links=[link(flags=0x10C3)]), [])
    assert chosen[0]["noarp"] is True


def routes(*found: dict[str, Any], addresses: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    return choose.select_routes(facts(routes=list(found), addresses=addresses or [address()]), [2])[0]


def test_kernel_routes_are_left_to_the_guests_kernel() -> None:
    """What an address brings by itself is not sent: network, fe80::/64, multicast, local, broadcast."""
    network = route("10.0.0.0", 24, proto=2, scope=253)
    local = route("10.0.0.2", 32, proto=2, table=255, type=2)
    assert routes(network, local, route("fe80::", 64, proto=2), route("ff00::", 8, proto=2)) == []


def test_a_peers_kernel_route_is_kept() -> None:
    """The route to a point-to-point peer does not follow from the address and its prefix."""
    peer = route("10.0.0.1", 32, proto=2, scope=253)
    assert [item["dest"] for item in routes(peer, addresses=[address(prefix=32)])] == ["10.0.0.1/32"]


def test_routes_come_in_an_order_in_which_they_can_be_added() -> None:
    """Those without a gateway first; among equals the one with the lower metric, because the guest keeps
    one.
    """
    worse = route(gateway="10.0.0.9", metric=200)
    better = route(gateway="10.0.0.1", metric=100)
    to_gateway = route("10.0.0.1", 32, scope=253)
    found = routes(worse, better, to_gateway)
    assert [(item["dest"], item["gateway"]) for item in found] == [
        ("10.0.0.1/32", ""), ("", "10.0.0.1"), ("", "10.0.0.9")
    ]  # fmt: skip


def test_only_onlink_of_the_flags_goes_along() -> None:
    """Dead and link-down say something about the host's moment, onlink about the route."""
    assert routes(route("10.9.0.0", 16, gateway="172.16.0.1", flags=4 | 1 | 16))[0]["flags"] == 4


@pytest.mark.parametrize(
    "unfit",
    [
        route("10.7.0.0", 16, table=100),
        route("10.7.0.0", 16, type=7),
        route("10.7.0.0", 16, foreign_gateway=True),
    ],
)
def test_routes_that_cannot_be_carried_are_named(unfit: dict[str, Any]) -> None:
    """Policy routing, blackholes and IPv6 gateways of IPv4 routes are listed as skipped."""
    chosen, skipped = choose.select_routes(facts(routes=[unfit]), [2])
    assert not chosen and [item["what"] for item in skipped] == ["route 10.7.0.0/16"]


def test_of_a_multipath_route_the_first_hop_is_used_and_told() -> None:
    """The agent protocol knows one gateway per route."""
    chosen, skipped = choose.select_routes(facts(routes=[route(gateway="10.0.0.1", hops=2)]), [2])
    assert len(chosen) == 1 and "first hop" in skipped[0]["reason"]


def test_neighbours_that_matter_go_along() -> None:
    """Permanent ones as they are, a known gateway as stale, others and proxies not."""

    def entry(dst: str, state: int, flags: int = 0, mac: str = MAC) -> dict[str, Any]:
        return {"index": 2, "family": 2, "dst": dst, "mac": mac, "state": state, "flags": flags}

    known = [entry("10.0.0.5", 0x80), entry("10.0.0.1", 0x02), entry("10.0.0.6", 0x02),
             entry("10.0.0.7", 0x80, flags=8), entry("10.0.0.8", 0x80, mac="")]  # fmt: skip
    gateway = {"device": "eth0", "gateway": "10.0.0.1"}
    found = choose.select_neighbours(facts(neighbours=known), [2], [gateway])
    assert [(item["address"], item["state"]) for item in found] == [("10.0.0.5", 0x80), ("10.0.0.1", 0x04)]


def test_twins_are_found() -> None:
    """Two links with one MAC are reported, different ones are not."""
    assert choose.duplicate_mac([link(), link(3, mac="02:00:00:00:00:02")]) == ""
    assert choose.duplicate_mac([link(), link(3)]) == MAC
