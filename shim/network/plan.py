"""What a pod's network namespace holds, as plain frozen data: links with their taps, routes, neighbours.

Owns: the shape of that data and its JSON form for the state file. Must not know: netlink, protobuf, the VM.
Made by netns.py from the child's answer, turned into agent messages by guest.py, read by the sandbox builder
(tap descriptors) and its state file (tap names, for clean-up after a crash).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple


class Address(NamedTuple):
    """An IP address on a link. `family`: 4 or 6; `prefix`: length in bits."""

    family: int
    address: str
    prefix: int


class NicInfo(NamedTuple):
    """One link of the namespace and the tap that stands behind it.

    `index`, `name`, `kind`, `mac`, `mtu` are the link's own; the guest's NIC gets name, MAC, MTU and
    addresses. `tap_name` is the tap's name in the namespace, `tap_made` whether hako made it (else it was
    found there). `tap_fd` is a descriptor of this process, opened with IFF_VNET_HDR, for `-netdev tap,fd=`;
    -1 after `NetworkPlan.close()` or when the data came back from the state file.
    """

    index: int  # type: ignore[assignment]  # not the method of tuples
    name: str
    kind: str
    mac: str
    mtu: int
    noarp: bool
    addresses: tuple[Address, ...]
    tap_name: str
    tap_made: bool
    tap_fd: int = -1


class RouteInfo(NamedTuple):
    """A unicast route of the main table. `dest`: "" is the default route, else "10.0.0.0/8".

    `scope`: rtm_scope (0 universe, 253 link); `flags`: only RTNH_F_ONLINK (4); `mtu` 0: none given.
    """

    family: int
    dest: str
    gateway: str
    device: str
    source: str
    scope: int
    flags: int
    mtu: int
    metric: int


class NeighbourInfo(NamedTuple):
    """A neighbour that the guest should know from the start; `state` and `flags` as in rtnetlink(7)."""

    family: int
    address: str
    device: str
    mac: str
    state: int
    flags: int


class Skipped(NamedTuple):
    """Something in the namespace that the guest does not get, and why: for the log."""

    what: str
    reason: str


class NetworkPlan(NamedTuple):
    """Everything that the guest gets from one network namespace (`netns_path`, a host path).

    After a rescan `nics` and `neighbours` hold only what is new, but `routes` all of them, because the agent
    replaces its whole table.
    """

    netns_path: str
    nics: tuple[NicInfo, ...] = ()
    routes: tuple[RouteInfo, ...] = ()
    neighbours: tuple[NeighbourInfo, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def taps(self) -> list[str]:
        """Names of the taps that `detach` has to remove."""
        return [nic.tap_name for nic in self.nics if nic.tap_made]

    def close(self) -> None:
        """Close the tap descriptors. A tap that hako made disappears with its last descriptor."""
        for nic in self.nics:
            if nic.tap_fd >= 0:
                os.close(nic.tap_fd)

    def to_state(self) -> dict[str, Any]:
        """JSON-able form without descriptors."""
        state = self._asdict() | {
            key: [item._asdict() for item in getattr(self, key)] for key in ("nics", "routes", "neighbours", "skipped")
        }
        for nic in state["nics"]:
            del nic["tap_fd"]
            nic["addresses"] = [address._asdict() for address in nic["addresses"]]
        return state


def plan_from(state: dict[str, Any], tap_fds: Iterable[int] = ()) -> NetworkPlan:
    """The plan in `state` (the form of `to_state`), its NICs given `tap_fds` in order."""
    numbers = iter(tap_fds)
    nics = []
    for item in state["nics"]:
        addresses = tuple(_one(Address, address) for address in item["addresses"])
        nics.append(_one(NicInfo, {**item, "addresses": addresses, "tap_fd": next(numbers, -1)}))
    return NetworkPlan(
        netns_path=state["netns_path"],
        nics=tuple(nics),
        routes=tuple(_one(RouteInfo, item) for item in state["routes"]),
        neighbours=tuple(_one(NeighbourInfo, item) for item in state["neighbours"]),
        skipped=tuple(_one(Skipped, item) for item in state["skipped"]),
    )


def _one(kind: Any, item: dict[str, Any]) -> Any:
    """`item` as the NamedTuple `kind`, keys that a newer version wrote left out."""
    return kind(**{key: value for key, value in item.items() if key in kind._fields})
