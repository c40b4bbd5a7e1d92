"""A pod's network namespace: refuse the host's, carry its links into the VM, take them back.

Owns: opening and checking a namespace path, and the verbs `attach`, `rescan`, `detach`. Must not know:
netlink (the child does), QEMU, protobuf. Called by the sandbox builder and by clean-up after a crash.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from shim.errors import NotFound, Unsupported
from shim.network import tapname, worker
from shim.network.plan import NetworkPlan, plan_from
from shim.network.worker import DEFAULT_TIMEOUT, NetworkError

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h

# Namespaces that a pod must not be given: ours, and the first process's.
HOST_NAMESPACES = ("/proc/self/ns/net", "/proc/1/ns/net")


class Attaching:
    """An `attach` under way; exactly one of `result` and `cancel` must be called."""

    def __init__(self, pending: worker.Pending, netns_path: str) -> None:
        self._pending = pending
        self._path = netns_path

    def result(self) -> NetworkPlan:
        """Wait for the plan. Raises NetworkError (step and object), Timeout."""
        answer, fds = self._pending.result()
        return plan_from({"netns_path": self._path, **answer}, fds)

    def cancel(self) -> None:
        """End it without the plan; the taps go with the child."""
        self._pending.cancel()


def begin_attach(
    netns_path: str, sandbox_id: str, timeout: float = DEFAULT_TIMEOUT, known: Iterable[int] = ()
) -> Attaching:
    """Start carrying the links of `netns_path` (host path) into a VM; returns before it is done.

    `known`: indexes of links that are carried already. Raises NotFound, Unsupported (the host's namespace),
    NetworkError.
    """
    netns = open_netns(netns_path)
    try:
        request = {"known": sorted(known)}
        pending = worker.start("attach", request, [netns], timeout, f"{netns_path} of {sandbox_id}")
    finally:
        os.close(netns)
    return Attaching(pending, netns_path)


def attach(netns_path: str, sandbox_id: str, timeout: float = DEFAULT_TIMEOUT) -> NetworkPlan:
    """Carry every link of `netns_path` that has an address into a VM; the plan owns the taps' descriptors.

    Raises as `begin_attach` and `Attaching.result`; nothing is left in the namespace then.
    """
    return begin_attach(netns_path, sandbox_id, timeout).result()


def rescan(
    netns_path: str, sandbox_id: str, known: NetworkPlan | Iterable[int], timeout: float = DEFAULT_TIMEOUT
) -> NetworkPlan:
    """As `attach`, for links that came later (Docker adds them after create).

    `known` is the first plan, or the indexes of the links carried so far. The plan has the new links only,
    but the routes of all. Without new links nothing is started: a cheap look decides.
    """
    indexes = {nic.index for nic in known.nics} if isinstance(known, NetworkPlan) else set(known)
    if not has_links(netns_path, beside=indexes):
        return NetworkPlan(netns_path)
    return begin_attach(netns_path, sandbox_id, timeout, known=indexes).result()


def detach(netns_path: str, taps: Sequence[str], timeout: float = DEFAULT_TIMEOUT) -> None:
    """Remove these taps (`NetworkPlan.taps`) and the redirects to them.

    A namespace or tap that is gone is no error: this is also the clean-up after a crash. Raises
    NetworkError, Timeout.
    """
    if not taps:
        return
    try:
        netns = open_netns(netns_path)
    except NotFound:
        return
    try:
        worker.call("detach", {"taps": list(taps)}, [netns], timeout, netns_path)
    finally:
        os.close(netns)


def open_netns(path: str) -> int:
    """A descriptor of the network namespace at this host path.

    Raises NotFound (no such path), NetworkError (not a network namespace), Unsupported (the host's own).
    """
    step = "open network namespace"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound("there is no such path", step=step, object=path) from None
    except OSError as exc:
        raise NetworkError(os.strerror(exc.errno or 0), step=step, object=path, errno=exc.errno or 0) from exc
    try:
        _check(fd, path, step)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(fd: int, path: str, step: str) -> None:
    if not _is_netns(fd):
        raise NetworkError("not a network namespace", step=step, object=path)
    if is_host(fd):
        raise Unsupported(
            "this is the host's network namespace, which a VM cannot share",
            step=step,
            object=path,
            hint="run without host networking (hostNetwork: true, --net=host)",
        )


def _is_netns(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:  # ENOTTY: no namespace at all
        return False


def is_host(fd: int) -> bool:
    """Whether this namespace is our own or the first process's (as far as we may look at that one)."""
    this = os.fstat(fd)
    for path in HOST_NAMESPACES:
        try:
            other = os.stat(path)
        except OSError:  # a first process that we may not trace: then ours has to do
            continue
        if (this.st_dev, this.st_ino) == (other.st_dev, other.st_ino):
            return True
    return False


def has_links(netns_path: str, beside: Iterable[int] = ()) -> bool:
    """Whether the namespace has a link other than `lo`, our taps and the indexes `beside`: 1 ms, without a
    child.

    Raises as `open_netns`.
    """
    netns = open_netns(netns_path)
    try:
        found = _in_namespace(netns, socket.if_nameindex)
    finally:
        os.close(netns)
    seen = set(beside)
    return any(index not in seen and name != "lo" and tapname.link_of(name) is None for index, name in found)


def _in_namespace(netns: int, look: Any) -> Any:
    """What `look()` returns in a thread of its own that has entered the namespace and ends with it."""
    import threading

    from agent.linux import syscalls

    outcome: list[Any] = []

    def work() -> None:
        try:
            syscalls.setns(netns, syscalls.CLONE_NEWNET)
            outcome.append(look())
        except OSError as exc:
            outcome.append(exc)

    thread = threading.Thread(target=work, name="hako-netns")
    thread.start()
    thread.join()
    if isinstance(outcome[0], OSError):
        raise NetworkError(str(outcome[0]), step="enter network namespace", errno=outcome[0].errno or 0)
    return outcome[0]
