"""A pod's links in a real guest: virtio-net behind our taps, configured by the real agent."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.containerd import guest_config, short_directory
from tests.framework.images import make_busybox
from tests.framework.netns import Namespace, namespaces, veth

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run as root"),
]

HAKO = "import sys; sys.argv[0] = 'hako'; from shim.__main__ import hako; sys.exit(hako())"


class Net:
    """A node (`peer`), a LAN and a pod with two links: a veth to the node, a macvlan on the LAN."""

    def __init__(
        self, host: Namespace, peer: Namespace, lan: Namespace, pod: Namespace, directory: Path
    ) -> None:
        self.host, self.peer, self.lan, self.pod = host, peer, lan, pod
        self.env = {"HAKO_STATE_DIR": str(directory / "h"), **guest_config(directory)}
        self.image = make_busybox(directory / "bb")

    def run(self, script: str) -> str:
        """What a container on the pod's network prints."""
        argv = ["run", "--rm", "--network", f"netns:{self.pod.path}", self.image, "sh", "-c", script]
        return self.host.run(sys.executable, "-c", HAKO, *argv, env=self.env, timeout=200)


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    """The pod's network as a network plugin would make it, with what is easily lost on the way into a VM."""
    with short_directory() as directory, namespaces(4, mounts=True) as (host, peer, lan, pod):
        veth(peer, "p0", pod, "eth0")
        peer.ip("addr add 10.9.0.1/24 dev p0")
        peer.ip("addr add fd00:9::1/64 dev p0 nodad")
        pod.ip("link set eth0 mtu 1400")
        pod.ip("addr add 10.9.0.2/24 dev eth0")
        pod.ip("addr add fd00:9::2/64 dev eth0 nodad")
        pod.ip("route add default via 10.9.0.1")
        pod.ip("-6 route add default via fd00:9::1")
        pod.ip("route add 10.30.0.0/16 via 192.168.7.1 dev eth0 onlink")
        pod.ip("route add 10.40.0.0/16 dev eth0 scope link mtu 1300")
        pod.ip("neigh add 10.9.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent")
        veth(lan, "l0", peer, "uplink")
        lan.ip("addr add 10.8.0.1/24 dev l0")
        peer.ip("link add mv0 link uplink type macvlan mode bridge")
        peer.ip(f"link set mv0 netns {pod.pid} name net1")
        pod.ip("addr add 10.8.0.2/24 dev net1")
        pod.ip("link set net1 up")
        yield Net(host, peer, lan, pod, directory)


def test_links_arrive_as_they_were(net: Net) -> None:
    """Names, MACs, MTU, addresses, routes and neighbours in the guest are the pod's, and packets pass."""
    out = net.run(
        "ip -o link; echo ==; ip -o addr; echo ==; ip route; ip -6 route; echo ==; ip neigh; echo ==;"
        "for a in 10.9.0.1 10.8.0.1 fd00:9::1; do ping -c1 -W5 $a >/dev/null && echo reached $a; done"
    )
    links, addresses, routes, neighbours, reached = out.split("==\n")
    for name in ("eth0", "net1"):
        (own,) = net.pod.ip_json(f"link show {name}")
        (line,) = [line for line in links.splitlines() if f" {name}:" in line or f" {name}@" in line]
        assert own["address"] in line and f"mtu {own['mtu']}" in line
    for address in ("10.9.0.2/24", "fd00:9::2/64", "10.8.0.2/24"):
        assert address in addresses
    assert "tentative" not in "".join(line for line in addresses.splitlines() if "fd00:9::2" in line)
    found = [line.strip() for line in routes.splitlines()]
    for start in (
        "default via 10.9.0.1 dev eth0",
        "default via fd00:9::1 dev eth0",
        "10.30.0.0/16 via 192.168.7.1",
    ):
        assert any(line.startswith(start) for line in found), found
    assert any(line.startswith("10.40.0.0/16 dev eth0 scope link") for line in found), found
    assert "10.9.0.77 dev eth0 lladdr 02:00:00:00:00:77" in neighbours and "PERMANENT" in neighbours
    assert reached.split() == ["reached", "10.9.0.1", "reached", "10.8.0.1", "reached", "fd00:9::1"]


def test_bulk_data_survives_the_offloads(net: Net) -> None:
    """Four MiB each way, through virtio-net with the offloads that QEMU negotiates, arrive unchanged."""
    data = os.urandom(4 << 20)
    down = net.peer.call(lambda: socket.create_server(("10.9.0.1", 7000)))
    up = net.peer.call(lambda: socket.create_server(("10.9.0.1", 7001)))
    received = hashlib.sha256()
    threads = [
        threading.Thread(target=_send, args=(down, data), daemon=True),
        threading.Thread(target=_receive, args=(up, received), daemon=True),
    ]
    for thread in threads:
        thread.start()
    out = net.run("nc 10.9.0.1 7000 > /tmp/f; sha256sum < /tmp/f; nc 10.9.0.1 7001 < /tmp/f")
    for thread in threads:
        thread.join(30)
    digest = hashlib.sha256(data).hexdigest()
    assert out.split()[0] == digest
    assert received.hexdigest() == digest


def _send(listener: socket.socket, data: bytes) -> None:
    connection, _ = listener.accept()
    with connection, listener:
        connection.sendall(data)


def _receive(listener: socket.socket, digest: hashlib._Hash) -> None:
    connection, _ = listener.accept()
    with connection, listener:
        while chunk := connection.recv(65536):
            digest.update(chunk)


def test_the_namespace_is_given_back(net: Net) -> None:
    """After the container the pod's namespace has no tap and no redirect, and its own stack answers again."""
    net.run("true")
    assert [link["ifname"] for link in net.pod.ip_json("link show")] == ["lo", "eth0", "net1"]
    for name in ("eth0", "net1"):
        assert not net.pod.run("tc", "qdisc", "show", "dev", name, "ingress")
    assert net.peer.can_ping("10.9.0.2")


def test_the_hosts_network_is_refused(net: Net) -> None:
    """A container on the host's own network is an error that says so; nothing is started."""
    own = ["--network", "netns:/proc/self/ns/net"]
    with pytest.raises(AssertionError, match="host's network namespace"):
        net.host.run(
            sys.executable, "-c", HAKO, "run", "--rm", *own, net.image, "true", env=net.env, timeout=100
        )
    assert subprocess.run(["pgrep", "-f", net.env["HAKO_STATE_DIR"]], capture_output=True).returncode == 1
