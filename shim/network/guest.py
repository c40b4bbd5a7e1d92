"""The plan in the agent's own words: pure conversion to its protobuf messages.

Owns: that conversion. Must not know: netlink, when the messages are sent. Called by the sandbox builder.
Kata's conventions: "" as the default route's destination, masks as prefix lengths in decimal, only
IFF_NOARP in `raw_flags`, `devicePath` empty (the agent finds the link by its MAC).
"""

from __future__ import annotations

from agent.api import agent_pb2, types_pb2
from shim.network.plan import Address, NeighbourInfo, NetworkPlan, NicInfo, RouteInfo

IFF_NOARP = 0x80


def interfaces(plan: NetworkPlan) -> list[types_pb2.Interface]:
    """One message per NIC, for UpdateInterface."""
    return [_interface(nic) for nic in plan.nics]


def routes(plan: NetworkPlan) -> agent_pb2.Routes:
    """All routes, in the order in which they can be added, for UpdateRoutes."""
    return agent_pb2.Routes(Routes=[_route(route) for route in plan.routes])


def neighbours(plan: NetworkPlan) -> agent_pb2.ARPNeighbors:
    """For AddARPNeighbors; nothing need be sent when it is empty."""
    return agent_pb2.ARPNeighbors(ARPNeighbors=[_neighbour(entry) for entry in plan.neighbours])


def _family(number: int) -> int:
    return types_pb2.v4 if number == 4 else types_pb2.v6


def _address(address: Address) -> types_pb2.IPAddress:
    return types_pb2.IPAddress(
        family=_family(address.family), address=address.address, mask=str(address.prefix)
    )


def _interface(nic: NicInfo) -> types_pb2.Interface:
    return types_pb2.Interface(
        device=nic.name,
        name=nic.name,
        IPAddresses=[_address(address) for address in nic.addresses],
        mtu=nic.mtu,
        hwAddr=nic.mac,
        raw_flags=IFF_NOARP if nic.noarp else 0,
    )


def _route(route: RouteInfo) -> types_pb2.Route:
    return types_pb2.Route(
        dest=route.dest,
        gateway=route.gateway,
        device=route.device,
        source=route.source,
        scope=route.scope,
        family=_family(route.family),
        flags=route.flags,
        mtu=route.mtu,
    )


def _neighbour(entry: NeighbourInfo) -> types_pb2.ARPNeighbor:
    return types_pb2.ARPNeighbor(
        toIPAddress=types_pb2.IPAddress(family=_family(entry.family), address=entry.address),
        device=entry.device,
        lladdr=entry.mac,
        state=entry.state,
        flags=entry.flags,
    )
