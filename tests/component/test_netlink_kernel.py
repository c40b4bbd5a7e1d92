"""agent/network.py and agent/linux/netlink.py in a network namespace of their own."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from agent import network
from agent.api import types_pb2
from agent.errors import AgentError, InvalidSpec, StepError
from agent.linux import netlink, syscalls, uevent
from agent.linux.netlink import Netlink
from tests.framework import forked

Result = TypeVar("Result")
MAC = "02:00:00:00:00:01"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace")


def ip(command: str) -> None:
    """Run ip(8) in the current namespace."""
    subprocess.run(["ip", *command.split()], check=True)


def in_namespace(function: Callable[[], Result], *, plugged: bool = True) -> Result:
    """`function()` in a child with a fresh network namespace and, if plugged, a veth called veth7 with MAC.
    """

    def child() -> Result:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        if plugged:
            ip(f"link add veth7 address {MAC} type veth peer name other")
            ip("link set other up")
        return function()

    return forked.run(child)


def interface(**more: Any) -> types_pb2.Interface:
    """An interface as the shim describes it."""
    addresses = [
        types_pb2.IPAddress(family=types_pb2.v4, address="10.1.2.3", mask="24"),
        types_pb2.IPAddress(family=types_pb2.v6, address="fd00::5", mask="64"),
    ]
    return types_pb2.Interface(
        **{"name": "eth0", "hwAddr": MAC, "mtu": 1400, "IPAddresses": addresses, **more}
    )


def addresses_of(found: types_pb2.Interface) -> list[tuple[str, str]]:
    """(address, prefix) but the kernel's own link-local one."""
    return [(a.address, a.mask) for a in found.IPAddresses if not a.address.startswith("fe80")]


def test_interface_is_renamed_addressed_and_up() -> None:
    """update_interface does all that the shim asks, and says so; listing shows the same."""

    def act() -> tuple[Any, ...]:
        answer = network.update_interface(interface(hwAddr=MAC.upper(), raw_flags=netlink.IFF_NOARP))
        with Netlink() as kernel:
            link = next(link for link in kernel.links() if link.name == "eth0")
            (six,) = [a for a in kernel.addresses() if a.address[:2] == b"\xfd\x00"]
        listed = next(i for i in network.list_interfaces().Interfaces if i.name == "eth0")
        return answer.name, addresses_of(answer), answer.mtu, link.flags, addresses_of(listed), six.flags

    name, addresses, mtu, flags, listed, six_flags = in_namespace(act)
    assert (name, mtu) == ("eth0", 1400)
    assert addresses == listed == [("10.1.2.3", "24"), ("fd00::5", "64")]
    assert flags & netlink.IFF_UP and flags & netlink.IFF_NOARP
    tentative = 0x40
    assert six_flags & netlink.IFA_F_NODAD and not six_flags & tentative


def test_update_replaces_addresses_and_is_repeatable() -> None:
    """What is no longer asked for goes; asking for the same twice is no error."""

    def act() -> list[tuple[str, str]]:
        network.update_interface(interface())
        network.update_interface(interface())
        only = [types_pb2.IPAddress(address="10.9.9.9", mask="32")]
        return addresses_of(network.update_interface(interface(IPAddresses=only)))

    assert in_namespace(act) == [("10.9.9.9", "32")]


def test_a_name_in_use_is_taken_over() -> None:
    """Two NICs swap names: the holder of the wanted name is moved away."""

    def act() -> list[str]:
        ip("link add eth0 type veth peer name peer1")
        network.update_interface(interface())
        with Netlink() as kernel:
            return [link.mac for link in kernel.links() if link.name == "eth0"]

    assert in_namespace(act) == [MAC]


def test_missing_link_is_named_in_kata_words() -> None:
    """Kata's shim repeats its request while the error contains "Link not found"."""

    def act() -> tuple[str, float]:
        start = time.monotonic()
        try:
            network.update_interface(interface(), seconds=0.2)
        except AgentError as error:
            return str(error), time.monotonic() - start
        return "", 0.0

    text, waited = in_namespace(act, plugged=False)
    assert "Link not found" in text
    assert 0.15 < waited < 2


def test_hot_plugged_link_is_awaited() -> None:
    """A link that appears after the request is found by its uevent."""

    def act() -> str:
        plug = f"link add late0 address {MAC} type veth peer name other"
        timer = threading.Timer(0.3, lambda: ip(plug))
        timer.start()
        answer = network.update_interface(interface(), seconds=10)
        timer.join()
        return answer.name

    assert in_namespace(act, plugged=False) == "eth0"


def routes(*wanted: dict[str, Any]) -> list[types_pb2.Route]:
    """Routes as the shim describes them."""
    return [types_pb2.Route(**{"device": "eth0", **route}) for route in wanted]


def listed() -> list[tuple[str, str, str]]:
    """(destination, gateway, source) of all routes but the kernel's."""
    with Netlink() as kernel:
        own = [route for route in kernel.routes() if route.protocol != netlink.RTPROT_KERNEL]
    text = netlink.format_address
    return sorted(
        (
            f"{text(r.destination)}/{r.prefix}" if r.destination else "",
            text(r.gateway) if r.gateway else "",
            text(r.source) if r.source else "",
        )
        for r in own
    )


def test_routes_are_replaced_in_an_order_that_works() -> None:
    """A default route is given before the link route that it needs; old routes go; both families."""

    def act() -> tuple[Any, Any, Any]:
        network.update_interface(interface(IPAddresses=[
            types_pb2.IPAddress(address="10.1.2.3", mask="32"),
            types_pb2.IPAddress(address="fd00::5", mask="64"),
        ]))  # fmt: skip
        first = routes(
            {"gateway": "169.254.1.1"},
            {"dest": "169.254.1.1", "scope": netlink.SCOPE_LINK},
            {"dest": "10.7.0.0/16", "gateway": "169.254.1.1", "source": "10.1.2.3", "mtu": 1300},
            {"gateway": "fd00::1", "family": types_pb2.v6},
            {"dest": "fd11::/64", "family": types_pb2.v6},
        )
        network.update_routes(first)
        after_first = listed()
        answer = network.update_routes(routes({"dest": "0.0.0.0/0", "gateway": "10.200.0.1", "flags": 4}))
        mtus = [route.flags for route in answer.Routes if route.gateway]
        return after_first, listed(), mtus

    first, second, flags = in_namespace(act)
    assert first == [
        ("", "169.254.1.1", ""),
        ("", "fd00::1", ""),
        ("10.7.0.0/16", "169.254.1.1", "10.1.2.3"),
        ("169.254.1.1/32", "", ""),
        ("fd11::/64", "", ""),
    ]
    assert second == [("", "10.200.0.1", "")]
    assert flags == [netlink.RTNH_F_ONLINK]


def test_route_through_an_unknown_device_or_gateway_fails_with_words() -> None:
    """The error names the device, or holds what the kernel says."""

    def act() -> tuple[str, str, str]:
        network.update_interface(interface())
        texts = []
        for wanted in ({"device": "eth9"}, {"gateway": "192.0.2.1"}, {"dest": "10.0.0.0/99"}):
            try:
                network.update_routes(routes(wanted))
            except (network.LinkNotFound, StepError, InvalidSpec) as error:
                texts.append(str(error))
        return texts[0], texts[1], texts[2]

    device, gateway, prefix = in_namespace(act)
    assert "eth9" in device
    assert "invalid gateway" in gateway  # the kernel's own words
    assert "10.0.0.0/99" in prefix or "'99'" in prefix


def test_neighbours_are_permanent_unless_asked_otherwise() -> None:
    """State 0 means NUD_PERMANENT, as a static ARP entry."""

    def act() -> str:
        network.update_interface(interface())
        entry = types_pb2.ARPNeighbor(
            toIPAddress=types_pb2.IPAddress(address="10.1.2.1"), device="eth0", lladdr="02:00:00:00:00:99"
        )
        network.add_neighbours([entry])
        network.add_neighbours([entry])
        return subprocess.run(["ip", "neigh", "show"], check=True, capture_output=True, text=True).stdout

    found = in_namespace(act)
    assert "10.1.2.1 dev eth0 lladdr 02:00:00:00:00:99" in found
    assert "PERMANENT" in found


def test_counters_leave_out_the_loopback() -> None:
    """Statistics are those of the pod's own interfaces."""

    def act() -> list[str]:
        network.update_interface(interface())
        return sorted(entry.name for entry in network.counters())

    assert in_namespace(act) == ["eth0", "other"]


def test_many_routes_are_listed_completely() -> None:
    """A dump of several datagrams is read to its end."""

    def act() -> int:
        network.update_interface(interface())
        wanted = routes(*({"dest": f"10.{n // 250}.{n % 250}.0/24"} for n in range(10, 1010)))
        return len([r for r in network.update_routes(wanted).Routes if r.dest.startswith("10.")])

    assert in_namespace(act) >= 1000


def test_waiting_for_an_event_ends_at_its_deadline() -> None:
    """Without any event the wait takes as long as it may, and not longer."""

    def act() -> float:
        start = time.monotonic()
        assert uevent.wait_for(lambda: None, ("nothing",), 0.2) is None
        return time.monotonic() - start

    assert 0.19 < in_namespace(act) < 2


def test_dns_is_written_line_by_line(tmp_path: Any) -> None:
    """The host's lines become the file."""
    path = str(tmp_path / "resolv.conf")
    network.write_dns(["nameserver 10.0.0.1", "search a b\n"], path)
    with open(path) as file:
        assert file.read() == "nameserver 10.0.0.1\nsearch a b\n"


def test_dns_on_a_read_only_root_is_mounted_over_the_file(tmp_path: Any) -> None:
    """The guest's /etc cannot be written; the pod's file appears there nevertheless, and can be replaced.
    """
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "resolv.conf").write_text("")
    path, writable = str(tmp_path / "etc" / "resolv.conf"), str(tmp_path / "run" / "resolv.conf")

    def act() -> list[str]:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
        etc = str(tmp_path / "etc")
        syscalls.mount(etc, etc, None, syscalls.MS_BIND)
        syscalls.mount(None, etc, None, syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY)
        texts = []
        for name in ("first", "second"):
            network.write_dns([f"nameserver {name}"], path, writable)
            with open(path) as file:
                texts.append(file.read())
        return texts

    assert forked.run(act) == ["nameserver first\n", "nameserver second\n"]
