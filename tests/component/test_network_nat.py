"""The NAT network of `hako run`, in a host of its own: a namespace that has an uplink to a second one, the
LAN.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.framework.netns import Namespace, namespaces, veth

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run as root")

HANDLE = "import json, dataclasses; from shim.network import nat; "


class Host:
    """The private host: its namespaces, the LAN behind it and a state directory."""

    def __init__(self, host: Namespace, lan: Namespace, state: Path) -> None:
        self.ns, self.lan, self.state = host, lan, state
        self.env = {"HAKO_STATE_DIR": str(state)}

    def acquire(self, container: str, options: str = "") -> Any:
        code = f"print(json.dumps(dataclasses.asdict(nat.acquire({container!r}{options}))))"
        return self.ns.python(HANDLE + code, self.env)

    def refused(self, container: str, options: str = "") -> str:
        """The text of the error that `acquire` raises."""
        code = f"""
from shim.errors import HakoError
from shim.network import nat
try:
    nat.acquire({container!r}{options})
except HakoError as exc:
    print(__import__("json").dumps(type(exc).__name__ + " " + str(exc)))
"""
        return str(self.ns.python(code, self.env))

    def release(self, container: str) -> None:
        self.ns.python(HANDLE + f"nat.release({container!r})", self.env)

    def inside(self, handle: Any, *argv: str, check: bool = True) -> str:
        """Run a command in the container's namespace."""
        return self.ns.run("nsenter", f"--net={handle['path']}", "--", *argv, check=check)

    def pings(self, handle: Any, address: str) -> bool:
        return "1 received" in self.inside(handle, "ping", "-c1", "-W2", address, check=False)

    def left(self) -> list[str]:
        """What of the network there is: links beside lo and eth0, tables, mounts, state."""
        links = [link["ifname"] for link in self.ns.ip_json("link show")]
        found = [name for name in links if name not in ("lo", "eth0")]
        found += self.ns.run("nft", "list", "tables").splitlines()
        found += [
            line for line in self.ns.run("cat", "/proc/self/mounts").splitlines() if str(self.state) in line
        ]
        found += [str(path) for path in self.state.rglob("*") if path.name not in ("nat", "netns", "lock")]
        return found

    def forwarding(self) -> str:
        return self.ns.run("cat", "/proc/sys/net/ipv4/ip_forward").strip()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host 192.0.2.2 whose default route leads to the LAN's 192.0.2.1; forwarding is off."""
    with namespaces(2, mounts=True) as (inner, lan):
        veth(lan, "lan0", inner, "eth0")
        lan.ip("addr add 192.0.2.1/24 dev lan0")
        inner.ip("addr add 192.0.2.2/24 dev eth0")
        inner.ip("route add default via 192.0.2.1")
        inner.run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward")
        yield Host(inner, lan, tmp_path)


def test_a_container_reaches_the_world_as_the_host(host: Host) -> None:
    """What a container sends arrives at the LAN with the host's address, and the answer comes back."""
    handle = host.acquire("c1")
    server = host.lan.popen(
        sys.executable, "-c",
        "import socket; s = socket.create_server(('192.0.2.1', 80)); print('up', flush=True); "
        "c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()",
    )  # fmt: skip
    assert server.stdout is not None and server.stdout.readline() == "up\n"
    client = "import socket; print(socket.create_connection(('192.0.2.1', 80), 5).recv(99).decode())"
    assert host.inside(handle, sys.executable, "-c", client).strip() == "192.0.2.2"
    server.communicate(timeout=10)


def test_the_lan_gets_in_only_when_asked(host: Host) -> None:
    """A packet from outside that answers nothing does not reach a container, though it is routed to it."""
    handle = host.acquire("c1")
    host.lan.ip("route add 10.213.0.0/16 via 192.0.2.2")
    assert not host.lan.can_ping(handle["address"])
    assert host.pings(handle, "192.0.2.1")


def test_containers_reach_each_other_and_the_host(host: Host) -> None:
    """Two containers on the bridge have different addresses and talk."""
    first, second = host.acquire("c1"), host.acquire("c2")
    assert first["address"] != second["address"]
    assert host.pings(first, second["address"]) and host.pings(second, first["gateway"])


def test_the_last_user_takes_everything_away(host: Host) -> None:
    """Bridge, table, namespaces, state and the forwarding value are as before when nobody is left."""
    host.acquire("c1")
    host.acquire("c2")
    assert host.forwarding() == "1"
    host.release("c1")
    assert "hako0" in host.left() and "table ip hako" in host.left()
    host.release("c2")
    assert host.left() == []
    assert host.forwarding() == "0"
    host.release("c2")  # may be repeated


def test_forwarding_that_was_on_stays_on(host: Host) -> None:
    """A host that forwarded before goes on doing so."""
    host.ns.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    host.acquire("c1")
    host.release("c1")
    assert host.forwarding() == "1"


def test_a_subnet_in_use_is_avoided(host: Host) -> None:
    """A route that overlaps the preferred subnet makes hako take another."""
    host.ns.ip("route add 10.213.7.0/24 via 192.0.2.1")
    assert host.acquire("c1")["address"] == "10.214.0.2"
    host.release("c1")
    assert host.acquire("c1", ", subnet='10.99.0.0/24'")["address"] == "10.99.0.2"


def test_the_uplinks_mtu_is_taken(host: Host) -> None:
    """A container's link has the MTU of the host's default route, so that no packet is too large for it."""
    host.ns.ip("link set eth0 mtu 1442")
    handle = host.acquire("c1")
    assert handle["mtu"] == 1442
    assert "mtu 1442" in host.inside(handle, "ip", "link", "show", "eth0")
    assert host.ns.ip_json("link show hako0")[0]["mtu"] == 1442


def test_many_at_once_get_an_address_each(host: Host) -> None:
    """Six processes acquiring at the same time share one network; releasing at once leaves nothing."""
    names = [f"c{n}" for n in range(6)]
    code = HANDLE + "import sys; print(nat.acquire(sys.argv[1]).address)"
    running = [host.ns.popen(sys.executable, "-c", code, name, env=host.env) for name in names]
    outputs = [process.communicate(timeout=60) for process in running]
    assert len({out for out, _ in outputs}) == 6, outputs
    code = HANDLE + "import sys; nat.release(sys.argv[1])"
    running = [host.ns.popen(sys.executable, "-c", code, name, env=host.env) for name in names]
    assert [process.communicate(timeout=60)[1] for process in running] == [""] * 6
    assert host.left() == []


@pytest.mark.parametrize("moment", ["nat.nft.apply", "nat.ipam.new_user", "nat.nft.blockers"])
def test_an_acquire_killed_half_way_is_swept_by_the_next(host: Host, moment: str) -> None:
    """A process that dies at any point of acquire leaves nothing that the next one does not clear."""
    code = HANDLE + f"import os; {moment} = lambda *a: os.kill(os.getpid(), 9); nat.acquire('c1')"
    dead = host.ns.popen(sys.executable, "-c", code, env=host.env)
    dead.communicate(timeout=30)
    assert dead.returncode == -signal.SIGKILL
    handle = host.acquire("c1")
    assert handle["address"] == "10.213.0.2" and host.pings(handle, "192.0.2.1")
    host.release("c1")
    assert host.left() == [] and host.forwarding() == "0"


def test_a_failing_acquire_leaves_nothing(host: Host) -> None:
    """When the packet filter cannot be set up, the namespace and the bridge are gone again."""
    code = """
import json
from shim.errors import HakoError
from shim.network import nat, nft
nft.ruleset = lambda *a: "no ruleset"
try:
    nat.acquire("c1")
except HakoError as exc:
    print(json.dumps(str(exc)))
"""
    assert "nft -f -" in host.ns.python(code, host.env)
    assert host.left() == [] and host.forwarding() == "0"


def test_sweep_releases_what_no_container_owns(host: Host) -> None:
    """Ids that are not alive are released, the others keep working."""
    host.acquire("dead")
    handle = host.acquire("alive")
    swept = host.ns.python(HANDLE + "print(json.dumps(nat.sweep(lambda id: id == 'alive')))", host.env)
    assert swept == ["dead"]
    assert host.pings(handle, "192.0.2.1")


def test_an_id_has_one_network(host: Host) -> None:
    """A second acquire for the same id is refused and does not disturb the first."""
    handle = host.acquire("c1")
    assert host.refused("c1").startswith("AlreadyExists acquire network: c1")
    assert host.pings(handle, "192.0.2.1")


def test_a_bridge_of_somebody_else_is_not_taken(host: Host) -> None:
    """A bridge of our name that others use is an error, and stays as it was."""
    host.ns.ip("link add hako0 type bridge")
    host.ns.ip("link add port0 type veth peer name port1")
    host.ns.ip("link set port0 master hako0")
    for _ in range(2):
        refusal = host.refused("c1")
        assert "hako0" in refusal and "port0" in refusal
    assert host.ns.ip_json("link show port0")[0]["master"] == "hako0"


def test_a_stray_bridge_without_ports_is_replaced(host: Host) -> None:
    """A bridge whose state file is lost does not block the network."""
    host.acquire("c1")
    subprocess.run(["rm", "-r", str(host.state / "nat")], check=True)
    host.ns.ip("link del " + next(name for name in host.left() if name.startswith("hk")))
    assert host.acquire("c2")["address"] == "10.213.0.2"


def test_a_firewall_that_drops_forwarded_packets_is_named(host: Host) -> None:
    """Where another table's policy drops what we forward, the user is told which one."""
    chain = "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"
    host.ns.run("nft", f"add table ip filter; {chain}")
    (warning,) = host.acquire("c1")["warnings"][-1:]
    assert "ip filter FORWARD" in warning and "hako0" in warning


def test_the_namespace_can_be_carried_into_a_vm(host: Host) -> None:
    """What acquire made is a network namespace as `attach` wants it, with address and default route."""
    handle = host.acquire("c1")
    code = (
        HANDLE + "from shim.network import netns; "
        f"plan = netns.attach({handle['path']!r}, 'c1'); print(json.dumps(plan.to_state())); plan.close()"
    )
    plan = host.ns.python(code, host.env)
    assert [nic["addresses"][0]["address"] for nic in plan["nics"]] == [handle["address"]]
    assert [(route["dest"], route["gateway"]) for route in plan["routes"]] == [("", handle["gateway"])]
