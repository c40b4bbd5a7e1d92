"""Links of a real network namespace carried into a VM; the guest is played by another namespace."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from shim.errors import NotFound, Unsupported
from shim.network import netns
from shim.network.plan import NetworkPlan, NicInfo
from shim.network.worker import NetworkError
from tests.framework.netns import Namespace, Wire, namespaces, open_tap, veth

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run as root")


@pytest.fixture
def pair() -> Iterator[tuple[Namespace, Namespace]]:
    """A peer (the node's side) and a pod, joined by a veth pair `p0` - `eth0` with addresses."""
    with namespaces(2) as (peer, pod):
        veth(peer, "p0", pod, "eth0")
        peer.ip("addr add 10.9.0.1/24 dev p0")
        pod.ip("addr add 10.9.0.2/24 dev eth0")
        pod.ip("route add default via 10.9.0.1")
        yield peer, pod


@contextmanager
def attached(pod: Namespace) -> Iterator[NetworkPlan]:
    plan = netns.attach(pod.path, "sandbox", timeout=30)
    try:
        yield plan
    finally:
        plan.close()


@contextmanager
def guest_of(plan: NetworkPlan) -> Iterator[Namespace]:
    """A namespace configured from the plan alone, its links wired to the plan's taps: what the agent makes.
    """
    with namespaces(1) as (guest,), ExitStack() as undo:
        for nic in plan.nics:
            fd = guest.call(lambda name=nic.name: open_tap(name))  # type: ignore[misc]
            undo.callback(os.close, fd)
            undo.callback(Wire(nic.tap_fd, fd).close)
            configure(guest, nic)
        for route in plan.routes:
            options = f"dev {route.device} scope {route.scope}"
            options += f" via {route.gateway}" if route.gateway else ""
            options += " onlink" if route.flags & 4 else ""
            guest.ip(f"-{route.family} route add {route.dest or 'default'} {options}")
        yield guest


def configure(guest: Namespace, nic: NicInfo) -> None:
    guest.ip(f"link set {nic.name} address {nic.mac} mtu {nic.mtu}")
    guest.ip(f"link set {nic.name} up")
    for address in nic.addresses:
        nodad = " nodad" if address.family == 6 else ""
        guest.ip(f"addr add {address.address}/{address.prefix} dev {nic.name}{nodad}")


def qdiscs(namespace: Namespace, link: str) -> str:
    return namespace.run("tc", "qdisc", "show", "dev", link, "ingress")


def test_frames_of_a_veth_reach_the_guest_and_come_back(pair: tuple[Namespace, Namespace]) -> None:
    """The node and the guest reach each other, by IPv4 and IPv6, through the pod's veth."""
    peer, pod = pair
    peer.ip("addr add fd00:9::1/64 dev p0 nodad")
    pod.ip("addr add fd00:9::2/64 dev eth0 nodad")
    with attached(pod) as plan, guest_of(plan) as guest:
        assert peer.can_ping("10.9.0.2") and peer.can_ping("fd00:9::2")
        assert guest.can_ping("10.9.0.1") and guest.can_ping("fd00:9::1")


def test_the_pods_own_stack_is_silent_once_carried(pair: tuple[Namespace, Namespace]) -> None:
    """With no guest behind the tap nobody answers: the frames do not reach the namespace's own IP stack."""
    peer, pod = pair
    assert peer.can_ping("10.9.0.2")
    with attached(pod):
        peer.ip("neigh flush dev p0")
        assert not peer.can_ping("10.9.0.2")


def test_bulk_tcp_survives_segmentation(pair: tuple[Namespace, Namespace]) -> None:
    """Four MiB over TCP arrive unchanged, although veth hands over frames larger than the MTU."""
    peer, pod = pair
    data = os.urandom(4 << 20)
    with attached(pod) as plan, guest_of(plan) as guest:
        listener = guest.call(lambda: socket.create_server(("10.9.0.2", 7000)))
        sender = peer.call(lambda: socket.create_connection(("10.9.0.2", 7000), timeout=20))
        receiver, _ = listener.accept()
        receiver.settimeout(20)
        got = bytearray()
        with sender, receiver, listener:
            sender.settimeout(0)
            rest = memoryview(data)
            while len(got) < len(data):
                if rest:
                    try:
                        rest = rest[sender.send(rest) :]
                    except BlockingIOError:
                        pass
                try:
                    got += receiver.recv(65536, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    pass
        assert bytes(got) == data


def test_the_guest_gets_the_links_identity(pair: tuple[Namespace, Namespace]) -> None:
    """Name, MAC, MTU and addresses are the link's; the tap has the MTU too and QEMU's virtio-net header."""
    _peer, pod = pair
    pod.ip("link set eth0 mtu 1400")
    (link,) = pod.ip_json("link show eth0")
    with attached(pod) as plan:
        (nic,) = plan.nics
        assert (nic.name, nic.mac, nic.mtu, nic.noarp) == ("eth0", link["address"], 1400, False)
        assert [(a.family, a.address, a.prefix) for a in nic.addresses] == [(4, "10.9.0.2", 24)]
        (tap,) = pod.ip_json(f"-d link show {nic.tap_name}")
        assert tap["mtu"] == 1400
        assert tap["linkinfo"]["info_data"]["vnet_hdr"] is True
        assert plan.taps == [nic.tap_name]


def test_routes_and_neighbours_go_along(pair: tuple[Namespace, Namespace]) -> None:
    """Link-scope, onlink, IPv6 and MTU routes, permanent neighbours and the gateway's entry are in the
    plan.
    """
    peer, pod = pair
    pod.ip("addr add fd00:9::2/64 dev eth0 nodad")
    pod.ip("route add 10.20.0.0/16 dev eth0 scope link mtu 1300")
    pod.ip("route add 10.30.0.0/16 via 192.168.7.1 dev eth0 onlink")
    pod.ip("-6 route add fd00:77::/64 via fd00:9::1 dev eth0")
    pod.ip("neigh add 10.9.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent")
    pod.ip("neigh add 10.9.0.78 lladdr 02:00:00:00:00:78 dev eth0 nud stale")
    pod.can_ping("10.9.0.1")  # learns the gateway
    (peer_link,) = peer.ip_json("link show p0")
    with attached(pod) as plan:
        routes = {route.dest: route for route in plan.routes}
        assert set(routes) == {"", "10.20.0.0/16", "10.30.0.0/16", "fd00:77::/64"}
        assert (routes["10.20.0.0/16"].scope, routes["10.20.0.0/16"].mtu) == (253, 1300)
        assert (routes["10.30.0.0/16"].gateway, routes["10.30.0.0/16"].flags) == ("192.168.7.1", 4)
        assert (routes[""].gateway, routes[""].family) == ("10.9.0.1", 4)
        found = {(entry.address, entry.mac, entry.state) for entry in plan.neighbours}
        assert found == {("10.9.0.77", "02:00:00:00:00:77", 0x80), ("10.9.0.1", peer_link["address"], 0x04)}


def test_a_point_to_point_peer_stays_reachable(pair: tuple[Namespace, Namespace]) -> None:
    """The kernel's route to a peer address goes along, since the address alone does not bring it."""
    peer, pod = pair
    pod.ip("addr flush dev eth0")
    pod.ip("addr add 10.50.0.2 peer 10.50.0.1/32 dev eth0")
    pod.ip("route add default via 10.50.0.1 dev eth0")
    peer.ip("addr add 10.50.0.1 peer 10.50.0.2/32 dev p0")
    with attached(pod) as plan, guest_of(plan) as guest:
        assert guest.can_ping("10.50.0.1")


def test_several_links_are_carried_each_on_its_own(pair: tuple[Namespace, Namespace]) -> None:
    """A veth and a macvlan in one pod both work in the guest."""
    peer, pod = pair
    with namespaces(1) as (lan,):
        veth(lan, "l0", peer, "uplink")
        lan.ip("addr add 10.8.0.1/24 dev l0")
        peer.ip("link add mv0 link uplink type macvlan mode bridge")
        peer.ip(f"link set mv0 netns {pod.pid} name net1")
        pod.ip("addr add 10.8.0.2/24 dev net1")
        pod.ip("link set net1 up")
        with attached(pod) as plan, guest_of(plan) as guest:
            assert {nic.name: nic.kind for nic in plan.nics} == {"eth0": "veth", "net1": "macvlan"}
            assert guest.can_ping("10.9.0.1") and guest.can_ping("10.8.0.1")


def test_a_bridge_in_the_pod_is_carried(pair: tuple[Namespace, Namespace]) -> None:
    """A kind of link that Kata refuses, a bridge over the veth, works like any Ethernet link."""
    peer, pod = pair
    pod.ip("addr flush dev eth0")
    pod.ip("link add br0 type bridge")
    pod.ip("link set eth0 master br0")
    pod.ip("link set br0 up")
    pod.ip("addr add 10.9.0.2/24 dev br0")
    with attached(pod) as plan, guest_of(plan):
        assert [(nic.name, nic.kind) for nic in plan.nics] == [("br0", "bridge")]
        assert peer.can_ping("10.9.0.2")


def test_an_existing_tap_is_used_as_it_is(pair: tuple[Namespace, Namespace]) -> None:
    """A tap found in the namespace is opened, not redirected, and stays after detach."""
    _peer, pod = pair
    pod.ip("tuntap add dev tap9 mode tap")
    pod.ip("addr add 10.7.0.2/24 dev tap9")
    pod.ip("link set tap9 up")
    with attached(pod) as plan:
        nic = next(nic for nic in plan.nics if nic.name == "tap9")
        assert (nic.tap_name, nic.tap_made) == ("tap9", False)
        os.write(nic.tap_fd, bytes(10) + b"\xff" * 6 + b"\x02" + bytes(5) + b"\x08\x06" + bytes(28))
        assert pod.ip_json("-s link show tap9")[0]["stats64"]["rx"]["packets"] == 1
        assert plan.taps == [f"hako{next(n.index for n in plan.nics if n.name == 'eth0')}"]
    netns.detach(pod.path, plan.taps)
    assert pod.ip_json("link show tap9")


def test_links_without_a_usable_address_are_left_alone(pair: tuple[Namespace, Namespace]) -> None:
    """A link with only the kernel's own link-local address is nothing that the pod was given."""
    peer, pod = pair
    veth(peer, "p1", pod, "bare0")
    with attached(pod) as plan:
        assert [nic.name for nic in plan.nics] == ["eth0"]
        assert not qdiscs(pod, "bare0")


def test_what_is_no_ethernet_link_is_named_not_dropped_in_silence(pair: tuple[Namespace, Namespace]) -> None:
    """A tun link with an address is skipped, and the plan says so."""
    _peer, pod = pair
    pod.ip("tuntap add dev tun0 mode tun")
    pod.ip("addr add 10.6.0.1/24 dev tun0")
    with attached(pod) as plan:
        assert [skipped.what for skipped in plan.skipped] == ["link tun0"]


def test_rescan_returns_only_what_came_later(pair: tuple[Namespace, Namespace]) -> None:
    """As Docker does it: a link added after the first attach is found, the first stays as it is."""
    peer, pod = pair
    with attached(pod) as first:
        assert netns.rescan(pod.path, "sandbox", first).nics == ()
        veth(peer, "p1", pod, "eth1")
        pod.ip("addr add 10.10.0.2/24 dev eth1")
        pod.ip("route add 10.11.0.0/16 via 10.10.0.1")
        later = netns.rescan(pod.path, "sandbox", first)
        assert [nic.name for nic in later.nics] == ["eth1"]
        assert {route.device for route in later.routes} == {"eth0", "eth1"}  # the agent replaces its table
        assert netns.rescan(pod.path, "sandbox", {nic.index for nic in first.nics + later.nics}).nics == ()
        later.close()


def test_detach_gives_the_links_back(pair: tuple[Namespace, Namespace]) -> None:
    """After detach taps and redirects are gone and the namespace answers again; a second detach is no
    error.
    """
    peer, pod = pair
    with attached(pod) as plan:
        netns.detach(pod.path, plan.taps)
        assert peer.can_ping("10.9.0.2")
        assert [link["ifname"] for link in pod.ip_json("link show")] == ["lo", "eth0"]
        assert not qdiscs(pod, "eth0")
        netns.detach(pod.path, plan.taps)


def test_detach_after_a_crash_needs_only_the_names(pair: tuple[Namespace, Namespace]) -> None:
    """A tap that went with its killed holder leaves a redirect behind, which detach removes."""
    peer, pod = pair
    with attached(pod) as plan:
        names = plan.taps
    assert "ingress" in qdiscs(pod, "eth0")
    netns.detach(pod.path, names)
    assert peer.can_ping("10.9.0.2")
    netns.detach("/run/hako/netns/never-was", names)


def test_attach_again_over_a_crashed_predecessor(pair: tuple[Namespace, Namespace]) -> None:
    """A namespace whose last VM was killed can be used again without a clean-up in between."""
    peer, pod = pair
    with attached(pod):
        pass
    with attached(pod) as plan, guest_of(plan):
        assert peer.can_ping("10.9.0.2")


def test_filters_of_a_network_plugin_stay(pair: tuple[Namespace, Namespace]) -> None:
    """A filter that somebody else put on the link is neither replaced nor removed."""
    peer, pod = pair
    pod.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    theirs = "dev eth0 ingress pref 7 protocol ip u32 match ip dst 10.9.9.9/32 flowid 1:1"
    pod.run("tc", "filter", "add", *theirs.split())
    with attached(pod) as plan, guest_of(plan):
        assert peer.can_ping("10.9.0.2")
        netns.detach(pod.path, plan.taps)
    assert "pref 7" in pod.run("tc", "filter", "show", "dev", "eth0", "ingress")
    assert peer.can_ping("10.9.0.2")


def test_the_hosts_namespace_is_refused() -> None:
    """A pod on the host's network cannot be put into a VM: said so, and nothing is touched."""
    for path in ("/proc/self/ns/net", f"/proc/{os.getpid()}/ns/net"):
        with pytest.raises(Unsupported, match="host's network namespace"):
            netns.attach(path, "sandbox")


def test_paths_that_are_no_network_namespace_are_refused(tmp_path: os.PathLike[str]) -> None:
    """A missing path, a plain file and another kind of namespace each get their own error."""
    with pytest.raises(NotFound, match="no such path"):
        netns.attach(f"{tmp_path}/none", "sandbox")
    for path in ("/etc/hostname", "/proc/self/ns/mnt"):
        with pytest.raises(NetworkError, match="not a network namespace"):
            netns.attach(path, "sandbox")


def test_a_tap_in_use_is_an_error_and_leaves_nothing(pair: tuple[Namespace, Namespace]) -> None:
    """A second VM for the same namespace is refused by name, and the first one's network goes on."""
    peer, pod = pair
    with attached(pod) as plan, guest_of(plan):
        with pytest.raises(NetworkError) as refused:
            netns.attach(pod.path, "other")
        assert (refused.value.step, refused.value.object) == ("open tap", plan.taps[0])
        assert peer.can_ping("10.9.0.2")


def test_two_links_with_one_mac_are_refused(pair: tuple[Namespace, Namespace]) -> None:
    """The agent finds links by MAC, so twins are an error with both names, and the links stay as they were.
    """
    peer, pod = pair
    veth(peer, "p1", pod, "eth1")
    (link,) = pod.ip_json("link show eth0")
    pod.ip(f"link set eth1 address {link['address']}")
    pod.ip("addr add 10.10.0.2/24 dev eth1")
    with pytest.raises(NetworkError, match=r"eth0 and eth1.*same MAC"):
        netns.attach(pod.path, "sandbox")
    assert not qdiscs(pod, "eth0")


def test_a_failure_half_way_undoes_the_first_link(pair: tuple[Namespace, Namespace]) -> None:
    """When the second link cannot be carried, the first is given back."""
    peer, pod = pair
    pod.ip("tuntap add dev tap9 mode tap")
    pod.ip("addr add 10.7.0.2/24 dev tap9")
    held = pod.call(lambda: open_tap("tap9"))
    try:
        with pytest.raises(NetworkError, match="tap9"):
            netns.attach(pod.path, "sandbox")
        assert not qdiscs(pod, "eth0")
        assert peer.can_ping("10.9.0.2")
    finally:
        os.close(held)


def test_an_abandoned_attach_leaves_nothing(pair: tuple[Namespace, Namespace]) -> None:
    """`cancel` of a begun attach, at whatever point it is, gives the links back."""
    peer, pod = pair
    netns.begin_attach(pod.path, "sandbox").cancel()
    assert not qdiscs(pod, "eth0")
    assert peer.can_ping("10.9.0.2")


def test_has_links_tells_an_empty_namespace(pair: tuple[Namespace, Namespace]) -> None:
    """The cheap look sees links, ignores lo, known ones and our own taps, and leaves our namespace as it
    is.
    """
    _peer, pod = pair
    before = os.stat("/proc/thread-self/ns/net").st_ino
    with attached(pod) as plan:
        assert netns.has_links(pod.path)
        assert not netns.has_links(pod.path, beside=[nic.index for nic in plan.nics])
    with namespaces(1) as (empty,):
        assert not netns.has_links(empty.path)
    assert os.stat("/proc/thread-self/ns/net").st_ino == before


def test_the_parent_never_loads_pyroute2(pair: tuple[Namespace, Namespace]) -> None:
    """An attach leaves pyroute2, asyncio and subprocess unloaded in the process that stays."""
    _peer, pod = pair
    code = (
        "import sys; from shim.network import netns; "
        f"netns.attach({pod.path!r}, 'x').close(); "
        "print([m for m in ('pyroute2', 'asyncio', 'subprocess', 'msgspec') if m in sys.modules])"
    )

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["as it is", "built in another way"])
def test_pyroute2_is_loaded_with_and_without_its_package(package: str) -> None:
    """The short way into pyroute2 works, and where a version does not allow it the whole package is taken."""
    code = (
        "import sys; from types import ModuleType; from shim.network import netlink\n"
        f"if {package != 'as it is'}:\n"
        "    netlink._bypass_package = lambda: sys.modules.update(pyroute2=ModuleType('pyroute2'))\n"
        "links = list(netlink.open_socket().get_links())\n"
        "print(links[0].get_attr('IFLA_IFNAME'), 'pyroute2.ndb' in sys.modules)\n"
    )
    with namespaces(1) as (namespace,):
        out = namespace.run(sys.executable, "-c", code)
    assert out.split() == ["lo", str(package != "as it is")]
