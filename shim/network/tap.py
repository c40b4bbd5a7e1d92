"""Taps behind the links of the current network namespace, and the tc redirects that carry every frame across.

Owns: making, opening and removing them. Must not know: which links are chosen, or the VM. Only the child
imports it.

A frame that comes in on the link goes out on the tap (to the VM) and the other way round, before the
namespace's own IP stack sees it: an ingress qdisc on each with one u32 filter that matches everything
(`match u32 0 0`; the matchall classifier does the same and is missing in some kernels) and a mirred action.
The tap is not persistent: with its last descriptor it is gone, whatever was killed; a redirect to a tap
that is gone drops the frames.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from shim.network.steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CLONE_DEVICE = "/dev/net/tun"
# linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000  # QEMU asks the descriptor (TUNGETIFF) and then uses offloads
IFF_MULTI_QUEUE = 0x0100

IFREQ = struct.Struct("16sH22x")
# Where filters hang, in an ingress qdisc and in clsact alike: TC_H_CLSACT | TC_H_MIN_INGRESS.
INGRESS = 0xFFFFFFF2
ETH_P_ALL = 3
# Behind any filter that a network plugin put there: those still see (police, mark, drop) the frames first.
PREFERENCE = 0xC000


def open_tap(name: str, *, multi_queue: bool = False) -> int:
    """Descriptor of tap `name` with IFF_VNET_HDR; it is made if it is not there. Raises StepFailed (EBUSY:
    in use).
    """
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if multi_queue else 0)
    with Step("open (modprobe tun)", CLONE_DEVICE):
        fd = os.open(CLONE_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    with Step("open tap", name):
        try:
            fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(name.encode(), flags))
        except OSError:
            os.close(fd)
            raise
    return fd


def prepare(ipr: Any, name: str, mtu: int) -> int:
    """Give tap `name` its MTU and bring it up; returns its index."""
    with Step("set up tap", name):
        _silence(name)
        (index,) = ipr.link_lookup(ifname=name)
        ipr.link("set", index=index, mtu=mtu)
        ipr.link("set", index=index, state="up")
    return int(index)


def _silence(name: str) -> None:
    """Keep the namespace's own IPv6 (neighbour discovery, multicast reports) from talking into the guest."""
    try:
        fd = os.open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # a kernel without IPv6, or /proc/sys is read-only: then the guest sees a few frames more
    with os.fdopen(fd, "w") as file:
        file.write("1")


def cross_connect(ipr: Any, link: int, tap: int) -> None:
    """Redirect all frames between the links with these indexes, both ways."""
    for source, target in ((link, tap), (tap, link)):
        with Step("redirect frames", f"from link {source} to link {target}"):
            disconnect(ipr, source)  # what a killed predecessor left
            _ensure_ingress(ipr, source)
            _redirect(ipr, source, target)


def _ensure_ingress(ipr: Any, index: int) -> None:
    if not _ingress_kind(ipr, index):
        ipr.tc("add", "ingress", index)


def _ingress_kind(ipr: Any, index: int) -> str:
    """ "ingress", "clsact" (a network plugin's, which has an ingress side too) or ""."""
    kinds = [m.get_attr("TCA_KIND") for m in ipr.get_qdiscs(index) if m["index"] == index]
    return next((kind for kind in kinds if kind in ("ingress", "clsact")), "")


def _redirect(ipr: Any, source: int, target: int) -> None:
    action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target}
    ipr.tc(
        "add-filter",
        "u32",
        source,
        parent=INGRESS,
        prio=PREFERENCE,
        protocol=ETH_P_ALL,
        target=0,
        keys=["0x0/0x0+0"],
        action=[action],
    )


def disconnect(ipr: Any, index: int) -> None:
    """Remove our filter from link `index`, and an ingress qdisc that is empty then. None is no error."""
    kind = _ingress_kind(ipr, index)
    if not kind:
        return
    filters = _preferences(ipr, index)
    if PREFERENCE in filters:
        ipr.tc("del-filter", index=index, parent=INGRESS, info=PREFERENCE << 16 | socket.htons(ETH_P_ALL))
        if filters == {PREFERENCE} and kind == "ingress":
            ipr.tc("del", "ingress", index)


def _preferences(ipr: Any, index: int) -> set[int]:
    return {m["info"] >> 16 for m in ipr.get_filters(index, parent=INGRESS)}


def remove(ipr: Any, name: str) -> None:
    """Remove tap `name`, even while a VM holds it. Nothing there is no error."""
    for index in ipr.link_lookup(ifname=name):
        with Step("remove tap", name):
            ipr.link("del", index=index)
