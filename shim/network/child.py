"""The short-lived process that talks netlink: one request, one answer, then it ends.

Owns: the verbs and undoing a half-done one. Must not know: HakoError, the
VM. Executed by worker.py as `python3 -IS child.py SYSPATH_JSON` with a socket to its parent as descriptor
0; the namespace's descriptor comes with the request. pyroute2 is imported here and only here: it costs the
time and the memory once per call instead of for the life of the pod.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.network.steps import Rollback

    Request = dict[str, Any]
    Answer = tuple[dict[str, Any], list[int]]


def main() -> None:
    """Serve the one request on descriptor 0. The parent's SIGTERM (its deadline) undoes what was begun."""
    sys.path[:0] = json.loads(sys.argv[1])
    from shim.network import wire
    from shim.network.steps import Rollback

    sock = socket.socket(fileno=0)
    request, fds = wire.receive(sock)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by its parent"))
    with Rollback() as rollback:
        wire.send(sock, *answer(request, fds, rollback))
        os._exit(0)  # skips the interpreter's teardown, and the rollback


def answer(request: Request, fds: list[int], rollback: Rollback) -> Answer:
    """What the request yields: {"result": ...} or {"error": {step, object, message, errno}}."""
    from shim.network.steps import StepFailed

    try:
        result, taps = serve(request, fds, rollback)
    except StepFailed as failed:
        rollback.run()
        fields = ("step", "object", "message", "errno")
        return {"error": {name: getattr(failed, name) for name in fields}}, []
    return {"result": result}, taps


def serve(request: Request, fds: list[int], rollback: Rollback) -> Answer:
    """Carry out `request["verb"]`, in the namespace of the first descriptor if there is one."""
    from shim.network import netlink

    verb: Callable[[Any, Request, Rollback], Answer] = VERBS[request["verb"]]
    if fds:
        netlink.enter(fds[0])
    return verb(netlink.open_socket(), request, rollback)


def attach(ipr: Any, request: Request, rollback: Rollback) -> Answer:
    """Put a tap behind each link that is not carried yet; answers with what the guest gets and the taps."""
    from shim.network import choose, links

    facts = links.read(ipr)
    chosen, skipped = choose.select_links(facts, request["known"])
    refuse_twins(chosen)
    taps: list[int] = []
    nics = [carry(ipr, link, taps, rollback) for link in chosen]
    carried = [nic["index"] for nic in nics]
    routes, left_out = choose.select_routes(facts, carried + request["known"])
    neighbours = choose.select_neighbours(facts, carried, routes)
    result = {"nics": nics, "routes": routes, "neighbours": neighbours, "skipped": skipped + left_out}
    return result, taps


def refuse_twins(chosen: list[dict[str, Any]]) -> None:
    """The guest finds its link by the MAC, so that two links must not have the same one."""
    from shim.network import choose
    from shim.network.steps import StepFailed

    twin = choose.duplicate_mac(chosen)
    if twin:
        names = " and ".join(link["name"] for link in chosen if link["mac"] == twin)
        raise StepFailed("carry links into the VM", names, f"they have the same MAC address {twin}")


def carry(ipr: Any, link: dict[str, Any], taps: list[int], rollback: Rollback) -> dict[str, Any]:
    """Open the tap of one link; its descriptor goes to the end of `taps`. A half-carried link swallows
    frames, hence the rollback.
    """
    from shim.network import tap, tapname

    found = link["kind"] == "tun"
    name = link["name"] if found else tapname.of_link(link["index"])
    taps.append(tap.open_tap(name, multi_queue=link["multi_queue"] and found))
    if not found:
        index = tap.prepare(ipr, name, link["mtu"])
        rollback.add(lambda: tap.disconnect(ipr, link["index"]))
        tap.cross_connect(ipr, link["index"], index)
    fields = ("index", "name", "kind", "mac", "mtu", "noarp", "addresses")
    return {**{field: link[field] for field in fields}, "tap_name": name, "tap_made": not found}


def detach(ipr: Any, request: Request, rollback: Rollback) -> Answer:
    """Remove the named taps and the redirects on the links before them; what is gone already is no error."""
    from shim.network import tap, tapname

    present = {message["index"] for message in ipr.get_links()}
    for name in request["taps"]:
        index = tapname.link_of(name)
        if index is None:
            continue
        if index in present:
            tap.disconnect(ipr, index)
        tap.remove(ipr, name)
    return {}, []


def nat_up(ipr: Any, request: Request, rollback: Rollback) -> Answer:
    """Make the bridge if need be, and a namespace with an address on it."""
    from shim.network import bridge

    return bridge.up(ipr, request, rollback), []


def nat_down(ipr: Any, request: Request, rollback: Rollback) -> Answer:
    """Remove one user of the bridge, or the bridge too."""
    from shim.network import bridge

    return bridge.down(ipr, request), []


VERBS: dict[str, Callable[[Any, Request, Rollback], Answer]] = {
    "attach": attach,
    "detach": detach,
    "nat_up": nat_up,
    "nat_down": nat_down,
}

if __name__ == "__main__":
    main()
