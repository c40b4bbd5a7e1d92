"""The plan as data: its state form, the agent's messages, the wire to the child, roll-back."""

from __future__ import annotations

import json
import os
import socket
import threading

import pytest

from shim.network import guest, steps, wire
from shim.network.plan import Address, NeighbourInfo, NetworkPlan, NicInfo, RouteInfo, Skipped, plan_from

NIC = NicInfo(
    index=2, name="eth0", kind="veth", mac="02:00:00:00:00:01", mtu=1400, noarp=True,
    addresses=(Address(4, "10.0.0.2", 24), Address(6, "fd00::2", 64)), tap_name="hako2", tap_made=True,
)  # fmt: skip
PLAN = NetworkPlan(
    netns_path="/run/netns/pod",
    nics=(NIC,),
    routes=(
        RouteInfo(4, "", "10.0.0.1", "eth0", "", 0, 4, 1300, 0),
        RouteInfo(6, "fd01::/64", "", "eth0", "fd00::2", 253, 0, 0, 7),
    ),
    neighbours=(NeighbourInfo(4, "10.0.0.1", "eth0", "02:00:00:00:00:99", 0x80, 0),),
    skipped=(Skipped("link tun0", "no Ethernet link"),),
)


def test_the_plan_survives_the_state_file() -> None:
    """Through JSON and back it is the same, without descriptors."""
    assert plan_from(json.loads(json.dumps(PLAN.to_state()))) == PLAN


def test_unknown_keys_of_a_newer_version_are_ignored() -> None:
    """A state file that a later hako wrote can still be used for clean-up."""
    state = PLAN.to_state()
    state["nics"][0]["queues"] = 4
    assert plan_from(state).taps == ["hako2"]


def test_taps_found_in_the_namespace_are_not_ours_to_remove() -> None:
    """Only taps that hako made are listed for detach."""
    state = PLAN.to_state()
    state["nics"][0]["tap_made"] = False
    assert plan_from(state).taps == []


def test_interfaces_as_the_agent_knows_them() -> None:
    """Masks are prefix lengths in decimal and of the flags only NOARP is told, as Kata's shim does it."""
    (message,) = guest.interfaces(PLAN)
    assert (message.device, message.name, message.hwAddr, message.mtu) == ("eth0", "eth0", NIC.mac, 1400)
    assert message.raw_flags == 0x80 and message.devicePath == ""
    assert [(a.family, a.address, a.mask) for a in message.IPAddresses] == [
        (0, "10.0.0.2", "24"), (1, "fd00::2", "64")
    ]  # fmt: skip


def test_routes_and_neighbours_as_the_agent_knows_them() -> None:
    """Every field of a route and a neighbour arrives in its message."""
    default, other = guest.routes(PLAN).Routes
    assert (default.dest, default.gateway, default.device, default.flags, default.mtu) == (
        "",
        "10.0.0.1",
        "eth0",
        4,
        1300,
    )
    assert (other.dest, other.source, other.scope, other.family) == ("fd01::/64", "fd00::2", 253, 1)
    (entry,) = guest.neighbours(PLAN).ARPNeighbors
    assert (entry.toIPAddress.address, entry.device, entry.lladdr, entry.state) == (
        "10.0.0.1",
        "eth0",
        "02:00:00:00:00:99",
        0x80,
    )


def test_descriptors_and_large_messages_cross_the_wire() -> None:
    """A message larger than the socket's buffer arrives whole, with its descriptors, closed on exec."""
    left, right = socket.socketpair()
    read, write = os.pipe()
    message = {"text": "x" * 1_000_000}
    sender = threading.Thread(target=wire.send, args=(left, message, [read]))
    sender.start()
    got, fds = wire.receive(right)
    sender.join()
    os.write(write, b"through")
    assert got == message and os.read(fds[0], 10) == b"through" and not os.get_inheritable(fds[0])
    for fd in (read, write, *fds):
        os.close(fd)


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\x05{", b"\xff\xff\xff\xff"])
def test_a_broken_message_is_an_error(sent: bytes) -> None:
    """An early end and an absurd length are refused, not waited for."""
    left, right = socket.socketpair()
    left.sendall(sent)
    left.close()
    with pytest.raises(wire.BrokenMessage):
        wire.receive(right)


def test_a_step_names_what_failed() -> None:
    """System and netlink errors inside a step come out with step, object and errno; others pass."""
    with pytest.raises(steps.StepFailed) as failed, steps.Step("open tap", "hako2"):
        raise OSError(16, "Device or resource busy")
    assert (failed.value.step, failed.value.object, failed.value.errno) == ("open tap", "hako2", 16)
    with pytest.raises(KeyError), steps.Step("open tap", "hako2"):
        raise KeyError("a mistake of ours")


def test_rollback_undoes_in_reverse_even_when_the_process_is_told_to_end() -> None:
    """SIGTERM (SystemExit) runs every undo, last first, also after one that fails."""
    done: list[int] = []
    with pytest.raises(SystemExit), steps.Rollback() as rollback:
        rollback.add(lambda: done.append(1))
        rollback.add(lambda: 1 / 0)
        rollback.add(lambda: done.append(3))
        raise SystemExit
    assert done == [3, 1]
