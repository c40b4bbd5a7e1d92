"""Device nodes and the fixed symlinks of a container's /dev, and its console.

Owns: the default list and how a node is made. Whether a device may be opened is the cgroup's affair
(agent.cgroups). Called by agent.container: plan() before the fork, the rest in the child. In a user namespace
nodes cannot be made, so they are made outside (stage) and bound in (attach).
"""

from __future__ import annotations

import errno
import os
import stat

from agent import mounts
from agent.errors import InvalidSpec, StepError
from agent.linux import syscalls
from agent.namespaces import to_outside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.api import oci_pb2
    from agent.namespaces import IdMap
    from agent.rootfs import Root

TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
SYMLINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)


class Device:
    """A node to be: container path, type and permissions as in st_mode, number, owner (ids inside the
    container).
    """

    __slots__ = ("gid", "mode", "path", "rdev", "tree", "uid")

    def __init__(self, path: str, mode: int, rdev: int, uid: int = 0, gid: int = 0) -> None:
        self.path = path
        self.mode = mode
        self.rdev = rdev
        self.uid = uid
        self.gid = gid
        self.tree = -1


def defaults() -> list[Device]:
    """What OCI gives every container."""
    numbers = (
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    )
    return [
        Device("/dev/" + name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        for name, major, minor in numbers
    ]


def plan(devices: Iterable[oci_pb2.LinuxDevice]) -> list[Device]:
    """The default devices and those of the spec, which win. Pure. Raises InvalidSpec."""
    result = {device.path: device for device in defaults()}
    for index, device in enumerate(devices):
        planned = _plan_one(device, f"linux.devices[{index}]")
        result[planned.path] = planned
    return list(result.values())


def _plan_one(device: oci_pb2.LinuxDevice, field: str) -> Device:
    if device.Type not in TYPES:
        raise InvalidSpec(field + ".type", f"unknown device type {device.Type!r}")
    permissions = device.FileMode & 0o7777 if device.HasField("FileMode") else 0o666
    number = 0 if device.Type == "p" else os.makedev(device.Major, device.Minor)
    return Device(
        mounts.normal_path(device.Path), TYPES[device.Type] | permissions, number, device.UID, device.GID
    )


def create(root: Root, devices: Iterable[Device]) -> None:
    """Make the nodes. One that is there already must be the same device, or it is replaced."""
    directory, at = "", -1
    for device in devices:
        where, _, name = device.path.rpartition("/")
        if at < 0 or where != directory:
            if at >= 0:
                os.close(at)
            directory, at = where, root.parent(device.path)[0]
        _create(device, name, at)
    if at >= 0:
        os.close(at)


def _create(device: Device, name: str, directory: int) -> None:
    try:
        os.mknod(name, device.mode, device.rdev, dir_fd=directory)
    except FileExistsError:
        if _is(device, os.stat(name, dir_fd=directory, follow_symlinks=False)):
            return
        os.unlink(name, dir_fd=directory)
        os.mknod(name, device.mode, device.rdev, dir_fd=directory)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), device.path) from None
    if device.uid or device.gid:
        os.chown(name, device.uid, device.gid, dir_fd=directory, follow_symlinks=False)


def _is(device: Device, info: os.stat_result) -> bool:
    return stat.S_IFMT(info.st_mode) == stat.S_IFMT(device.mode) and info.st_rdev == device.rdev


def stage(devices: Iterable[Device], directory: str, uid_map: IdMap, gid_map: IdMap) -> None:
    """Make the nodes on a tmpfs over `directory` (in a mount namespace of one's own) and take a mount of
    each.

    Owners are mapped here: outside of the user namespace an id is another number.
    """
    syscalls.mount("tmpfs", directory, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=700")
    for index, device in enumerate(devices):
        path = f"{directory}/{index}"
        os.mknod(path, device.mode, device.rdev)
        os.chown(path, to_outside(uid_map, device.uid), to_outside(gid_map, device.gid))
        device.tree = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)


def attach(root: Root, devices: Iterable[Device]) -> None:
    """Bind staged nodes to their places."""
    for device in devices:
        target = root.file(device.path)
        syscalls.move_mount(device.tree, target)
        os.close(target)
        os.close(device.tree)


def link(root: Root) -> None:
    """The symlinks that every container's /dev has."""
    directory = root.directory("/dev")
    links = SYMLINKS + ((("core", "/proc/kcore"),) if os.path.exists("/proc/kcore") else ())
    for name, target in links:
        _link(name, target, directory)
    os.close(directory)


def _link(name: str, target: str, directory: int) -> None:
    try:
        os.symlink(target, name, dir_fd=directory)
    except FileExistsError:
        # devtmpfs or the image has something there: a link that leads elsewhere, or the device /dev/ptmx.
        if name == "ptmx" and not stat.S_ISLNK(
            os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        ):
            os.unlink(name, dir_fd=directory)
            os.symlink(target, name, dir_fd=directory)


def bind_console(root: Root, slave: int) -> None:
    """Show the terminal as /dev/console."""
    flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
    tree = syscalls.open_tree(slave, "", flags)
    target = root.file("/dev/console")
    if stat.S_ISDIR(os.fstat(target).st_mode):
        raise StepError("console", errno.EISDIR, "/dev/console")
    syscalls.move_mount(tree, target)
    os.close(target)
    os.close(tree)


def are_wanted(operations: Iterable[mounts.MountOp]) -> bool:
    """False where the spec binds a /dev of its own, which is then left as it is."""
    return not any(
        operation.destination == "/dev" and isinstance(operation, mounts.BindMount)
        for operation in operations
    )
