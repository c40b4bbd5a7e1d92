"""The bridge of the NAT network and the namespaces on it, by netlink.

Owns: bridge, veth pairs, the named namespaces and what is configured in them. Must not know: who gets which
address (ipam.py), the packet filter (nft.py). Only the child imports it.
"""

from __future__ import annotations

import errno
import os

from agent.linux import syscalls
from shim.network import netlink
from shim.network.steps import Step, StepFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.network.steps import Rollback

INSIDE = "eth0"  # name of the link in the namespace


def up(ipr: Any, request: dict[str, Any], rollback: Rollback) -> dict[str, Any]:
    """Make the bridge if it is not there, then a namespace bound to `netns` with `address` on a veth pair.

    `request`: bridge, bridge_mac, gateway, prefix, mtu, netns (host path), link (the veth's host end), mac,
    address; `fresh`: a bridge that is there is nobody's. Raises StepFailed; what was made for this
    namespace is gone then.
    """
    index = ensure_bridge(ipr, request)
    remove_link(ipr, request["link"])  # what a killed predecessor left
    inside = make_namespace(request["netns"], rollback)
    try:
        with Step("make veth pair", request["link"]):
            peer = {"ifname": INSIDE, "net_ns_fd": inside, "address": request["mac"], "mtu": request["mtu"]}
            ipr.link("add", ifname=request["link"], kind="veth", mtu=request["mtu"], peer=peer)
        rollback.add(lambda: remove_link(ipr, request["link"]))
        with Step("connect to bridge", request["link"]):
            (host_end,) = ipr.link_lookup(ifname=request["link"])
            ipr.link("set", index=host_end, master=index, state="up")
        configure_inside(inside, request)
    finally:
        os.close(inside)
    return {}


def ensure_bridge(ipr: Any, request: dict[str, Any]) -> int:
    """Index of the bridge, made and addressed if need be."""
    name = request["bridge"]
    with Step("make bridge", name):
        if request["fresh"]:
            remove_stray(ipr, name)
        if not ipr.link_lookup(ifname=name):
            # An address of its own: else it takes its lowest port's and changes it when ports come and go.
            ipr.link("add", ifname=name, kind="bridge", address=request["bridge_mac"], mtu=request["mtu"])
        (index,) = ipr.link_lookup(ifname=name)
        try:
            ipr.addr("add", index=index, address=request["gateway"], prefixlen=request["prefix"])
        except Exception as exc:
            if getattr(exc, "code", 0) != errno.EEXIST:
                raise
        ipr.link("set", index=index, state="up")
    return int(index)


def remove_stray(ipr: Any, name: str) -> None:
    """Remove a bridge that no state file tells of, unless somebody uses it."""
    users = ports(ipr, name)
    if users:
        hint = f"it exists already and has ports ({', '.join(users)}) that this hako does not know"
        raise StepFailed("make bridge", name, hint)
    remove_link(ipr, name)


def make_namespace(path: str, rollback: Rollback) -> int:
    """A new network namespace bound to host path `path`; its descriptor. This process stays in its own."""
    with Step("make network namespace", path):
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        rollback.add(lambda: remove_namespace(path))
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            inside = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            syscalls.mount("/proc/self/ns/net", path, None, syscalls.MS_BIND)
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWNET)
            os.close(home)
    return inside


def remove_namespace(path: str) -> None:
    """Unmount and remove the file; the namespace goes when its last process is gone."""
    try:
        syscalls.umount2(path, syscalls.MNT_DETACH)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOENT):  # no mount there, no file there
            raise
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def configure_inside(netns: int, request: dict[str, Any]) -> None:
    """Addresses, routes and links of the namespace, by a netlink socket that was opened in it."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    netlink.enter(netns)
    try:
        inside = netlink.open_socket()
        with Step("configure network namespace", request["netns"]):
            inside.link("set", index=1, state="up")  # lo is always the first
            (index,) = inside.link_lookup(ifname=INSIDE)
            inside.addr("add", index=index, address=request["address"], prefixlen=request["prefix"])
            inside.link("set", index=index, state="up")
            inside.route("add", dst="default", gateway=request["gateway"], oif=index)
        inside.close()
    finally:
        netlink.enter(home)
        os.close(home)


def remove_link(ipr: Any, name: str) -> None:
    """Remove link `name`, with its peer. One that is not there, or goes by itself just now, is no error."""
    for index in ipr.link_lookup(ifname=name):
        try:
            with Step("remove link", name):
                ipr.link("del", index=index)
        except StepFailed as failed:
            if failed.errno != errno.ENODEV:
                raise


def down(ipr: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Remove the users in `request["users"]` (each: netns, link), then with `last` the bridge.

    A bridge that somebody put other ports on is left to them.
    """
    for user in request["users"]:
        remove_link(ipr, user["link"])
        with Step("remove network namespace", user["netns"]):
            remove_namespace(user["netns"])
    if request["last"] and not ports(ipr, request["bridge"]):
        remove_link(ipr, request["bridge"])
    return {}


def ports(ipr: Any, bridge: str) -> list[str]:
    """Names of the links that are ports of `bridge`."""
    for index in ipr.link_lookup(ifname=bridge):
        return [m.get_attr("IFLA_IFNAME") for m in ipr.get_links() if m.get_attr("IFLA_MASTER") == index]
    return []
