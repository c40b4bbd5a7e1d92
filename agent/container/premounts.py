"""What nearly every container has mounted, made before anybody knows the container: detached trees with nothing of it.

Owns: which file systems, devices, masked and read-only paths those are, and what of a plan they serve. Called by child.py in
a process that stands by (standby.py), which has its pid and ipc namespaces by then. What a plan has otherwise is mounted
as ever, and what it does not have goes when the program is executed.
"""

from __future__ import annotations

import os

from agent import devices, mounts, rootfs
from agent.api import oci_pb2
from agent.linux import syscalls
from agent.rootfs import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.container.plan import InitPlan
    from agent.mounts import MountOp

    Key = tuple[str, str, str, int, str]

# As runc, containerd, CRI-O and `hako run` write them: destination, type, source, options. Engines' pods have a /dev/shm of
# their own, and only `ctr run` has /run.
USUAL = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/run", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
)
# Mount points in the /dev that is ready: a container without one of them gets another /dev.
IN_DEV = frozenset(("/dev/pts", "/dev/mqueue", "/dev/shm"))
# What all of them mask and make read-only.
MASKED = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/scsi", "/proc/timer_list", "/sys/firmware")
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
SAME_SIZE = ("size=67108864", "size=65536k")
"""as `hako run` and Docker write it for /dev/shm, and as containerd does"""
SHOWS = {"/sys": syscalls.CLONE_NEWNET, "/dev/mqueue": syscalls.CLONE_NEWIPC}
"""of which namespace the mount shows the one in which it was made: a container with a new one needs its own"""


class Premounts:
    """The trees. Raises OSError, StepError. The caller is in the agent's mount namespace, before and after."""

    def __init__(self, scratch: str) -> None:
        """`scratch`: a directory to mount them below, in a mount namespace that nobody sees."""
        agents = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
        syscalls.mount("tmpfs", scratch, "tmpfs", 0, "mode=700")
        root = Root(os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        self._devices = {_identity(device) for device in devices.defaults()}
        self._trees = _trees(root)
        os.close(root.fd)
        syscalls.setns(agents, syscalls.CLONE_NEWNS)
        os.close(agents)

    def serve(self, plan: InitPlan) -> None:
        """Let the plan's operations take what they would make, and leave out of the plan what is done by that."""
        wanted = {key_of(operation): operation for operation in plan.mounts if isinstance(operation, mounts.FilesystemMount)}
        usable = {key for key in wanted.keys() & self._trees.keys() if not plan.namespaces.new & SHOWS.get(key[0], 0)}
        kernel = {key for key in usable if key[0] in ("/proc", "/sys")}
        if len(kernel) < 2 or not (set(MASKED) <= set(plan.masked_paths) and set(READONLY) <= set(plan.readonly_paths)):
            usable -= kernel
        else:
            plan.masked_paths = [path for path in plan.masked_paths if path not in MASKED]
            plan.readonly_paths = [path for path in plan.readonly_paths if path not in READONLY]
        destinations = {operation.destination for operation in plan.mounts}
        if not (destinations >= IN_DEV and self._devices <= {_identity(device) for device in plan.devices}):
            usable = {key for key in usable if key[0] != "/dev"}
        elif any(key[0] == "/dev" for key in usable):
            plan.devices = [device for device in plan.devices if _identity(device) not in self._devices]
            plan.links_made = True
        for key in usable:
            wanted[key].tree = self._trees.pop(key)


def _trees(root: Root) -> dict[Key, int]:
    """Everything mounted below `root`, each as a detached copy; those of procfs and sysfs with what hides in them."""
    operations = mounts.plan([_mount(*each) for each in USUAL], "/")
    for operation in operations:
        operation.attach(root)
    devices.create(root, devices.defaults())
    devices.link(root)
    rootfs.mask(root, MASKED)
    rootfs.make_readonly(root, READONLY)
    return {key_of(operation): _detached(root, operation) for operation in operations}


def _mount(destination: str, kind: str, source: str, options: Iterable[str]) -> oci_pb2.Mount:
    return oci_pb2.Mount(destination=destination, type=kind, source=source, options=options)


def _detached(root: Root, operation: MountOp) -> int:
    flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
    if isinstance(operation, mounts.KernelMount):
        flags |= syscalls.AT_RECURSIVE
    fd = root.open(operation.destination)
    tree = syscalls.open_tree(fd, "", flags)
    os.close(fd)
    return tree


def key_of(operation: MountOp) -> Key:
    """Operations with the same one make the same mount at the same place."""
    data = operation.data.replace(*SAME_SIZE)
    return operation.destination, operation.fstype, operation.source or operation.fstype, operation.options.set, data


def _identity(device: devices.Device) -> tuple[str, int, int, int, int]:
    return device.path, device.mode, device.rdev, device.uid, device.gid
