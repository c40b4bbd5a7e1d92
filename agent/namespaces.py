"""Namespaces of a container: which to make, which to join, and the primitives for both.

Owns: the kinds and their flags, the ID mappings, time offsets. Knows nothing of mounts or processes' stdio.
Called by agent.container: plan() and open_paths() before the fork, fork() in the agent, the rest in the
child.

A namespace to join is opened once and then held by descriptor; nothing is looked up under /proc/PID later.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import struct

from agent.errors import InvalidSpec
from agent.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.api import oci_pb2

    IdMap = list[tuple[int, int, int]]

FLAGS = {
    "mount": syscalls.CLONE_NEWNS,
    "pid": syscalls.CLONE_NEWPID,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "network": syscalls.CLONE_NEWNET,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "time": syscalls.CLONE_NEWTIME,
    "user": syscalls.CLONE_NEWUSER,
}
FILES = {"mount": "mnt", "network": "net"}
"""Names under /proc/PID/ns, where they differ from OCI's."""

OWN_PID_NAMESPACE = -1
NEW_PID_NAMESPACE = -2

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

_own_pid_namespace: list[int] = []


class Plan:
    """`new` and `joined` are disjoint; a kind in neither is shared with the agent (a mount namespace never
    is).
    """

    __slots__ = ("gid_map", "joined", "new", "paths", "time_offsets", "uid_map")

    def __init__(self) -> None:
        self.new = syscalls.CLONE_NEWNS
        self.paths: dict[str, str] = {}
        self.joined: dict[str, int] = {}
        """kind -> descriptor, filled by open_paths()"""
        self.uid_map: IdMap = []
        self.gid_map: IdMap = []
        self.time_offsets = ""

    def has(self, kind: str) -> bool:
        """Whether the container does not share this kind with the agent."""
        return bool(self.new & FLAGS[kind]) or kind in self.paths


def plan(linux: oci_pb2.Linux, shared: Mapping[str, str], pid_path: str | None) -> Plan:
    """What the OCI spec asks for.

    `shared`: kind -> guest path of the sandbox's namespace, used where the spec lists the kind without a
    path; `pid_path` the same for the pod's pid namespace. Raises InvalidSpec.
    """
    defaults = dict(shared)
    if pid_path:
        defaults["pid"] = pid_path
    result = Plan()
    seen: set[str] = set()
    for index, namespace in enumerate(linux.Namespaces):
        field, kind = f"linux.namespaces[{index}]", namespace.Type
        if kind not in FLAGS:
            raise InvalidSpec(field + ".type", f"unknown namespace {kind!r}")
        if kind in seen:
            raise InvalidSpec(field + ".type", f"namespace {kind} is given twice")
        seen.add(kind)
        _place(result, kind, namespace.Path or defaults.get(kind, ""))
    _plan_mappings(result, linux)
    _plan_time(result, linux)
    return result


def _place(result: Plan, kind: str, path: str) -> None:
    if path:
        result.paths[kind] = path
        result.new &= ~FLAGS[kind]
    else:
        result.new |= FLAGS[kind]


def _plan_mappings(result: Plan, linux: oci_pb2.Linux) -> None:
    result.uid_map = id_map(linux.UIDMappings)
    result.gid_map = id_map(linux.GIDMappings)
    if result.new & syscalls.CLONE_NEWUSER:
        for name, mapping in (("uid", result.uid_map), ("gid", result.gid_map)):
            if not mapping:
                raise InvalidSpec(f"linux.{name}Mappings", "a new user namespace needs them")
    elif result.uid_map and "user" not in result.paths:
        raise InvalidSpec("linux.uidMappings", "given without a user namespace")


def _plan_time(result: Plan, linux: oci_pb2.Linux) -> None:
    if linux.TimeOffsets and not result.new & syscalls.CLONE_NEWTIME:
        raise InvalidSpec("linux.timeOffsets", "given without a new time namespace")
    for clock, offset in linux.TimeOffsets.items():
        if clock not in ("monotonic", "boottime"):
            raise InvalidSpec("linux.timeOffsets", f"unknown clock {clock!r}")
        result.time_offsets += f"{clock} {offset.Secs} {offset.Nanosecs}\n"


def id_map(mappings: Iterable[oci_pb2.LinuxIDMapping]) -> IdMap:
    """(id inside, id outside, count) of each mapping."""
    return [(each.ContainerID, each.HostID, each.Size) for each in mappings]


def to_outside(mapping: IdMap, inside: int) -> int:
    """The id that `inside` is outside of the user namespace; itself when nothing maps it."""
    for first, outside, count in mapping:
        if first <= inside < first + count:
            return outside + inside - first
    return inside


def open_paths(plan: Plan) -> None:
    """Open every namespace to join. Raises OSError with the path."""
    for kind, path in plan.paths.items():
        plan.joined[kind] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def close_paths(plan: Plan) -> None:
    """Close what open_paths() opened."""
    while plan.joined:
        os.close(plan.joined.popitem()[1])


def open_of(pid: int, kind: str) -> int:
    """A namespace of process `pid`: a child of the agent that is not reaped and still waits, so that it is
    the one meant.
    """
    return os.open(f"/proc/{pid}/ns/{FILES.get(kind, kind)}", os.O_RDONLY | os.O_CLOEXEC)


def fork(pid_namespace: int) -> int:
    """os.fork() into a pid namespace: a descriptor, NEW_PID_NAMESPACE or OWN_PID_NAMESPACE. Returns as
    os.fork().

    unshare() and setns() of a pid namespace only choose where the next children go, so the agent chooses,
    forks, and chooses its own again: one fork in place of two.
    """
    if pid_namespace == OWN_PID_NAMESPACE:
        return os.fork()
    own = own_pid_namespace()
    if pid_namespace == NEW_PID_NAMESPACE:
        syscalls.unshare(syscalls.CLONE_NEWPID)
    else:
        syscalls.setns(pid_namespace, syscalls.CLONE_NEWPID)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid:
            syscalls.setns(own, syscalls.CLONE_NEWPID)
    return pid


def own_pid_namespace() -> int:
    """A descriptor of the agent's own pid namespace, opened at the first call."""
    if not _own_pid_namespace:
        _own_pid_namespace.append(os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC))
    return _own_pid_namespace[0]


def join(plan: Plan, kind: str) -> None:
    """Move the calling process to a namespace that open_paths() opened."""
    syscalls.setns(plan.joined[kind], FLAGS[kind])


def write_id_maps(pid: int, uid_map: IdMap, gid_map: IdMap) -> None:
    """Give the fresh user namespace of `pid` its mappings. By the agent: a process may map no ids that it has
    not.
    """
    for name, mapping in (("uid_map", uid_map), ("gid_map", gid_map)):
        text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in mapping)
        write_file(f"/proc/{pid}/{name}", text)


def write_file(path: str, text: str) -> None:
    """Write `text` to a file of the agent's procfs in one call, as the kernel demands. OSError names the
    path.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    finally:
        os.close(fd)


def open_time_offsets() -> int:
    """The file for the next time namespace's clocks. Procfs lets only the agent's own users open it."""
    return os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)


def enter_new_time_namespace(offsets_fd: int, offsets: str) -> None:
    """Make a time namespace, set its clocks and move there; unshare() alone would only move children."""
    syscalls.unshare(syscalls.CLONE_NEWTIME)
    if offsets:
        os.write(offsets_fd, offsets.encode())
    os.close(offsets_fd)
    fd = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.setns(fd, syscalls.CLONE_NEWTIME)
    os.close(fd)


def bring_up_loopback() -> None:
    """Set the link `lo` of the (new) network namespace up, as every runtime does."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    request = fcntl.ioctl(sock.fileno(), SIOCGIFFLAGS, struct.pack("16sh22x", b"lo", 0))
    flags = struct.unpack("16sh22x", request)[1]
    fcntl.ioctl(sock.fileno(), SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP))
    sock.close()


def user_namespace(uid_map: IdMap, gid_map: IdMap) -> int:
    """A descriptor of a user namespace with these mappings and nobody in it, for ID-mapped mounts."""
    ready_reader, ready_writer = os.pipe()
    hold_reader, hold_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _hold_user_namespace(ready_writer, hold_reader, hold_writer)
    os.close(ready_writer)
    os.close(hold_reader)
    try:
        answer = os.read(ready_reader, 4)
        if answer != b"new":
            raise OSError(int(answer or b"0"), "unshare of a user namespace")
        write_id_maps(pid, uid_map, gid_map)
        return open_of(pid, "user")
    finally:
        os.close(ready_reader)
        os.close(hold_writer)
        os.waitpid(pid, 0)


def _hold_user_namespace(ready: int, hold: int, hold_writer: int) -> None:
    """The child: one process must live in the namespace while its mappings are written."""
    try:
        os.close(hold_writer)
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        os.write(ready, b"new")
        os.read(hold, 1)
    except OSError as error:
        os.write(ready, b"%d" % (error.errno or 0))
    os._exit(0)
