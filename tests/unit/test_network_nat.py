"""The NAT network's arithmetic and texts: subnet, addresses, routes, ruleset, resolv.conf."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.errors import HakoError
from shim.network import ipam, nft, resolv

ROUTES = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	010200C0	0003	0	0	100	00000000	0	0	0
wlan0	00000000	0101A8C0	0003	0	0	50	00000000	0	0	0
eth0	000200C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
hako0	0000D50A	00000000	0001	0	0	0	0000FFFF	0	0	0
"""


def test_routes_are_read_from_the_kernels_table() -> None:
    """Addresses in /proc/net/route are little-endian hex; a link can be left out."""
    assert ipam.routes_of(ROUTES) == [
        "0.0.0.0/0.0.0.0", "0.0.0.0/0.0.0.0", "192.0.2.0/255.255.255.0", "10.213.0.0/255.255.0.0"
    ]  # fmt: skip
    assert len(ipam.routes_of(ROUTES, beside="hako0")) == 3


def test_the_uplink_is_the_default_route_with_the_lowest_metric() -> None:
    """With two default routes the kernel prefers the lower metric, and so does the MTU's choice."""
    assert ipam.default_link(ROUTES) == "wlan0"
    assert ipam.default_link("Iface\n") == ""


def test_the_preferred_subnet_is_taken_unless_it_clashes() -> None:
    """A route inside it, or around it, or a name server in it, is a clash; a default route is none."""
    assert ipam.choose_subnet(["10.99.0.0/24"], ["0.0.0.0/0"], []) == "10.99.0.0/24"
    assert ipam.choose_subnet(["10.99.0.0/24"], ["10.99.0.128/25"], []) == ipam.SUBNETS[0]
    assert ipam.choose_subnet([], ["10.0.0.0/8"], []) == "172.29.0.0/16"
    assert ipam.choose_subnet([], [], ["10.213.0.53", "fd00::1"]) == "10.214.0.0/16"


def test_no_free_subnet_names_every_clash() -> None:
    """A host that routes everything gets told what is in the way."""
    with pytest.raises(ipam.NoAddress, match=r"10\.213\.0\.0/16 with 0\.0\.0\.0/1"):
        ipam.choose_subnet([], ["0.0.0.0/1", "128.0.0.0/1"], [])


def test_addresses_are_given_from_the_lowest_and_run_out() -> None:
    """The gateway's is never given; a released one is given again; a full subnet is an error."""
    assert ipam.choose_address("10.9.0.0/29", []) == "10.9.0.2"
    assert ipam.choose_address("10.9.0.0/29", ["10.9.0.2", "10.9.0.4"]) == "10.9.0.3"
    with pytest.raises(ipam.NoAddress):
        ipam.choose_address("10.9.0.0/29", [f"10.9.0.{n}" for n in range(2, 7)])


def test_the_same_address_has_the_same_mac() -> None:
    """So a neighbour's cache stays right when the address is given again; the MAC is locally administered."""
    assert ipam.mac_of("10.213.1.2") == "02:68:0a:d5:01:02"


def test_link_names_fit_the_kernel() -> None:
    """However long the id, the veth's name has at most 15 characters and differs per id."""
    state = ipam.State(subnet="10.9.0.0/24")
    names = {ipam.new_user(state, id, "/x").link for id in ("a" * 200, "a" * 201, "b")}
    assert len(names) == 3 and all(len(name) <= 15 for name in names)


def test_state_is_written_read_and_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was saved comes back; without users and bridge no file is left."""
    monkeypatch.setenv("HAKO_STATE_DIR", str(tmp_path))
    with ipam.locked() as state:
        assert state == ipam.State()
        state.bridge, state.subnet = "hako0", "10.9.0.0/24"
        ipam.new_user(state, "c1", "/run/netns/c1")
        ipam.save(state)
    with ipam.locked() as again:
        assert again == state
        ipam.save(ipam.State())
    assert [path.name for path in (tmp_path / "nat").iterdir()] == ["lock"]


def test_a_damaged_state_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that is not JSON is an error with its path, not an empty network."""
    monkeypatch.setenv("HAKO_STATE_DIR", str(tmp_path))
    (tmp_path / "nat").mkdir()
    (tmp_path / "nat/state.json").write_text("{")
    with pytest.raises(HakoError, match=r"state\.json"), ipam.locked():
        pass


def test_resolv_conf_keeps_what_a_container_can_use() -> None:
    """Loopback and IPv6 servers go, search and options stay, at most three servers."""
    text = (
        "# c\nsearch a.b\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nnameserver fe80::1%eth0\noptions edns0\n"
    )
    assert resolv.for_containers([text]) == ("nameserver 9.9.9.9\nsearch a.b\noptions edns0\n", "")
    many = "".join(f"nameserver 9.9.9.{n}\n" for n in range(5))
    assert resolv.for_containers([many])[0].count("nameserver") == 3


def test_the_second_source_serves_where_the_first_is_loopback_only() -> None:
    """systemd-resolved writes the real servers into a file of its own."""
    text, warning = resolv.for_containers(["nameserver 127.0.0.53\n", "nameserver 10.0.0.53\n"])
    assert text == "nameserver 10.0.0.53\n" and not warning


def test_no_reachable_server_is_said() -> None:
    """With loopback servers alone the container gets none, and the user is told which there were."""
    text, warning = resolv.for_containers(["search a\nnameserver 127.0.0.1\n"])
    assert text == "search a\n" and "127.0.0.1" in warning


def test_the_ruleset_replaces_itself_in_one_transaction() -> None:
    """Applying it twice, or over an older one, never leaves a moment without a table."""
    text = nft.ruleset("hako0", "10.9.0.0/24")
    assert text.startswith("table ip hako\ndelete table ip hako\ntable ip hako {")
    assert 'ip saddr 10.9.0.0/24 oifname != "hako0" masquerade' in text


def test_only_forward_chains_that_drop_are_blockers() -> None:
    """Docker's FORWARD policy is one; input policies and other families are not."""

    def chain(**fields: str) -> dict[str, dict[str, str]]:
        return {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", **fields}}

    answer = {"nftables": [
        {"metainfo": {}}, chain(hook="forward", policy="drop"), chain(hook="input", policy="drop"),
        chain(hook="forward", policy="accept"), chain(family="ip6", hook="forward", policy="drop"), chain(),
    ]}  # fmt: skip
    assert nft.blocking_chains(answer) == ["ip filter FORWARD"]
