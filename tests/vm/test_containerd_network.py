"""A pod's network through a real containerd: the namespace that an engine prepared, and links that come after Create."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.framework.containerd import HAKO, Containerd
from tests.framework.ociimage import REFERENCE

pytestmark = [
    pytest.mark.vm,
    pytest.mark.pods,
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: containerd, QEMU's taps"),
]


def ip(*words: str) -> None:
    """One command of iproute2."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def namespaces(engine: Containerd) -> Iterator[tuple[str, str]]:
    """A pod's namespace as CNI leaves it and, at the other end of its veth, one that plays the node."""
    pod, node = engine.unique("p")[-12:], engine.unique("n")[-12:]
    pod, node = f"p{pod}", f"n{node}"
    for name in (pod, node):
        ip("netns", "add", name)
    try:
        ip("-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", node)
        for name, address in ((pod, "10.99.0.2/24"), (node, "10.99.0.1/24")):
            ip("-n", name, "address", "add", address, "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", pod, "route", "add", "default", "via", "10.99.0.1")
        yield pod, node
    finally:
        for name in (pod, node):
            ip("netns", "delete", name)


def test_the_pods_address_is_the_vms(engine: Containerd, namespaces: tuple[str, str]) -> None:
    """Address, default route and traffic to the node are there in the container; nothing is left in the namespace."""
    pod, _node = namespaces
    flags = ("--rm", "--runtime", HAKO, "--with-ns", f"network:/run/netns/{pod}")
    script = "ip -4 address show eth0; ip route; ping -c 1 -W 5 10.99.0.1"
    result = engine.ctr("run", *flags, REFERENCE, engine.unique("net"), "sh", "-c", script)
    text = result.stdout.decode()
    assert "10.99.0.2/24" in text
    assert "default via 10.99.0.1" in text
    assert "1 packets received" in text
    engine.assert_nothing_left()
    links = subprocess.run(["ip", "-n", pod, "-o", "link"], check=True, capture_output=True).stdout.decode()
    assert len(links.splitlines()) == 2, links
    filters = subprocess.run(["tc", "-n", pod, "qdisc", "show", "dev", "eth0"], check=True, capture_output=True)
    assert b"ingress" not in filters.stdout


def test_without_a_network_there_is_only_loopback(engine: Containerd) -> None:
    """`ctr run` without --cni: an empty namespace."""
    result = engine.ctr("run", "--rm", "--runtime", HAKO, REFERENCE, engine.unique("lo"), "ip", "-o", "link")
    assert [line.split(": ")[1] for line in result.stdout.decode().splitlines()] == ["lo"]


def test_the_hosts_network_is_refused(engine: Containerd) -> None:
    """--net-host cannot work in a VM: an error that says so, and nothing left."""
    result = engine.ctr("run", "--rm", "--net-host", "--runtime", HAKO, REFERENCE, engine.unique("host"), "true", check=False)
    assert result.returncode == 1 and b"host's network" in result.stderr
    engine.assert_nothing_left()
