"""Who uses the NAT network: a locked JSON file, and the choice of subnet and addresses (pure).

Owns: the file STATE/nat/state.json, its lock, the arithmetic. Must not know: netlink, the packet filter.
Called by nat.py alone. The file is written before the kernel is changed, so that whatever is killed, the
next one finds what to take away.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from shim import paths
from shim.errors import HakoError

# Tried in order; the first that nothing on the host routes to or resolves with.
SUBNETS = (
    "10.213.0.0/16",
    "10.214.0.0/16",
    "10.91.0.0/16",
    "172.29.0.0/16",
    "172.30.0.0/16",
    "192.168.213.0/24",
)


class NoAddress(HakoError):
    """All addresses, or all subnets, are taken."""


@dataclass
class User:
    """One container on the network. `ready` is false while it is being set up, under the lock: who finds it
    so was preceded by a process that was killed.
    """

    id: str
    address: str
    netns: str
    link: str
    ready: bool = False


@dataclass
class State:
    """Everything that must be undone some day. `forwarding_was`: ip_forward before the first user, "" if
    unknown.
    """

    bridge: str = ""
    subnet: str = ""
    forwarding_was: str = ""
    users: dict[str, User] = field(default_factory=dict)


def directory() -> str:
    """Host directory of the state file and its lock."""
    return os.path.join(paths.state_root(), "nat")


@contextmanager
def locked() -> Iterator[State]:
    """The state, nobody else changing it meanwhile; `save` is the caller's. A file that is not JSON is an
    error.
    """
    os.makedirs(directory(), mode=0o700, exist_ok=True)
    fd = os.open(os.path.join(directory(), "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield load()
    finally:
        os.close(fd)


def load() -> State:
    """The state on disk; an empty one if there is none."""
    try:
        with open(_file(), encoding="utf-8") as file:
            data = json.load(file)
    except FileNotFoundError:
        return State()
    except ValueError as exc:
        raise HakoError(str(exc), step="read state of the NAT network", object=_file()) from exc
    users = {name: User(**user) for name, user in data.pop("users").items()}
    return State(**data, users=users)


def save(state: State) -> None:
    """Replace the file; with no users left and nothing to restore it is removed."""
    if not state.users and not state.bridge:
        try:
            os.unlink(_file())
        except FileNotFoundError:
            pass
        return
    temporary = _file() + ".new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(asdict(state), file)
    os.rename(temporary, _file())  # not synced: what it describes does not survive a power failure either


def _file() -> str:
    return os.path.join(directory(), "state.json")


def choose_subnet(preferred: Iterable[str], routes: Iterable[str], servers: Iterable[str]) -> str:
    """The first of `preferred`, then SUBNETS, that overlaps no route (default routes aside) and holds no
    server.

    Raises NoAddress, naming what each clashes with.
    """
    taken = [ipaddress.IPv4Network(route) for route in routes]
    taken = [network for network in taken if network.prefixlen]
    taken += [ipaddress.IPv4Network(server) for server in servers if "." in server]
    clashes = []
    for candidate in (*preferred, *SUBNETS):
        network = ipaddress.IPv4Network(candidate)
        clash = next((other for other in taken if network.overlaps(other)), None)
        if clash is None:
            return str(network)
        clashes.append(f"{candidate} with {clash}")
    raise NoAddress(
        "all overlap something: " + ", ".join(clashes), step="choose a subnet for the NAT network"
    )


def gateway(subnet: str) -> str:
    """The bridge's own address: the first of the subnet."""
    return str(ipaddress.IPv4Network(subnet)[1])


def choose_address(subnet: str, taken: Iterable[str]) -> str:
    """The lowest free address after the gateway. Raises NoAddress."""
    used = set(taken)
    hosts = ipaddress.IPv4Network(subnet).hosts()
    next(hosts)  # the gateway
    for host in hosts:
        if str(host) not in used:
            return str(host)
    raise NoAddress("no address is free", step="choose an address", object=subnet)


def mac_of(address: str) -> str:
    """A locally administered MAC made from the address: whoever gets the address again finds no stale
    neighbours.
    """
    return ":".join(f"{octet:02x}" for octet in b"\x02\x68" + ipaddress.IPv4Address(address).packed)


def new_user(state: State, id: str, netns: str) -> User:
    """A user with an address of its own, entered into `state` as not ready."""
    import hashlib

    address = choose_address(state.subnet, (user.address for user in state.users.values()))
    link = "hk" + hashlib.sha256(id.encode()).hexdigest()[:12]  # 14 characters; IFNAMSIZ is 16
    user = User(id, address, netns, link)
    state.users[id] = user
    return user


def abandoned(state: State) -> list[User]:
    """Users whose set-up nobody will finish, and those whose namespace somebody removed."""
    return [user for user in state.users.values() if not (user.ready and _bound(user.netns))]


def _bound(path: str) -> bool:
    """Whether a namespace is bound to the file: its device is then that of nsfs, not the directory's."""
    try:
        return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except FileNotFoundError:
        return False


def routes_of(table: str, beside: str = "") -> list[str]:
    """The destinations in the text of /proc/net/route as "10.0.0.0/8", those over link `beside` left out."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[0] == beside:
            continue
        destination, mask = (int(fields[n], 16).to_bytes(4, "little") for n in (1, 7))
        found.append(f"{ipaddress.IPv4Address(destination)}/{ipaddress.IPv4Address(mask)}")
    return found


def default_link(table: str) -> str:
    """The link of the default route with the lowest metric in the text of /proc/net/route; "" if none."""
    rows: list[Any] = [line.split() for line in table.splitlines()[1:]]
    defaults = [(int(row[6]), row[0]) for row in rows if row[1] == row[7] == "00000000"]
    return min(defaults)[1] if defaults else ""
