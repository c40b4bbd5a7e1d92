"""Mounts of a container: OCI mounts as a planned list of operations, then executed.

Owns: the options' meaning and the kinds of mount. plan() is pure and runs before the fork; the operations run
in the child. A bind is made as a detached copy of its source, finished (read-only, ID-mapped, propagation)
and only then attached at a descriptor inside the rootfs, so there is no moment at which it is visible half
made, and no path that could change between check and use. Knows nothing of processes. Called by
agent.container.

stage() needs the agent's privileges and tree, attach() those of the container's user namespace; without one
they run directly one after the other.
"""

from __future__ import annotations

import errno
import os
import stat

from agent import namespaces
from agent.errors import InvalidSpec, StepError
from agent.linux import syscalls
from agent.rootfs import PROPAGATION, fd_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.api import oci_pb2
    from agent.namespaces import IdMap
    from agent.rootfs import Root

# option -> (set, clear) of MS_* flags
FLAGS = {
    "ro": (syscalls.MS_RDONLY, 0), "rw": (0, syscalls.MS_RDONLY),
    "nosuid": (syscalls.MS_NOSUID, 0), "suid": (0, syscalls.MS_NOSUID),
    "nodev": (syscalls.MS_NODEV, 0), "dev": (0, syscalls.MS_NODEV),
    "noexec": (syscalls.MS_NOEXEC, 0), "exec": (0, syscalls.MS_NOEXEC),
    "nosymfollow": (syscalls.MS_NOSYMFOLLOW, 0), "symfollow": (0, syscalls.MS_NOSYMFOLLOW),
    "noatime": (syscalls.MS_NOATIME, 0), "atime": (0, syscalls.MS_NOATIME),
    "nodiratime": (syscalls.MS_NODIRATIME, 0), "diratime": (0, syscalls.MS_NODIRATIME),
    "relatime": (syscalls.MS_RELATIME, 0), "norelatime": (0, syscalls.MS_RELATIME),
    "strictatime": (syscalls.MS_STRICTATIME, 0), "nostrictatime": (0, syscalls.MS_STRICTATIME),
    "sync": (syscalls.MS_SYNCHRONOUS, 0), "async": (0, syscalls.MS_SYNCHRONOUS),
    "dirsync": (syscalls.MS_DIRSYNC, 0),
    "mand": (syscalls.MS_MANDLOCK, 0), "nomand": (0, syscalls.MS_MANDLOCK),
    "iversion": (syscalls.MS_I_VERSION, 0), "noiversion": (0, syscalls.MS_I_VERSION),
    "lazytime": (syscalls.MS_LAZYTIME, 0), "nolazytime": (0, syscalls.MS_LAZYTIME),
    "silent": (syscalls.MS_SILENT, 0), "loud": (0, syscalls.MS_SILENT),
    "acl": (syscalls.MS_POSIXACL, 0), "noacl": (0, syscalls.MS_POSIXACL),
    "defaults": (0, 0),
}  # fmt: skip
# MS_* flags that belong to the mount and not to the file system, as the bits that mount_setattr(2) sets and
# clears.
ATTRIBUTES = {
    syscalls.MS_RDONLY: (syscalls.MOUNT_ATTR_RDONLY, 0),
    syscalls.MS_NOSUID: (syscalls.MOUNT_ATTR_NOSUID, 0),
    syscalls.MS_NODEV: (syscalls.MOUNT_ATTR_NODEV, 0),
    syscalls.MS_NOEXEC: (syscalls.MOUNT_ATTR_NOEXEC, 0),
    syscalls.MS_NOSYMFOLLOW: (syscalls.MOUNT_ATTR_NOSYMFOLLOW, 0),
    syscalls.MS_NODIRATIME: (syscalls.MOUNT_ATTR_NODIRATIME, 0),
    syscalls.MS_NOATIME: (syscalls.MOUNT_ATTR_NOATIME, syscalls.MOUNT_ATTR__ATIME),
    syscalls.MS_RELATIME: (syscalls.MOUNT_ATTR_RELATIME, syscalls.MOUNT_ATTR__ATIME),
    syscalls.MS_STRICTATIME: (syscalls.MOUNT_ATTR_STRICTATIME, syscalls.MOUNT_ATTR__ATIME),
}
# Files of procfs that may be replaced by a bind, as lxcfs and engines do (runc's list); the rest of /proc may
# not.
PROC_FILES = frozenset(
    "/proc/" + name
    for name in (
        "cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime",
        "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
    )
)  # fmt: skip
CGROUP2_MOUNT = "/sys/fs/cgroup"


class Options:
    """Mount options taken apart."""

    __slots__ = (
        "bind",
        "clear",
        "copy_up",
        "data",
        "idmap",
        "propagation",
        "rec_clear",
        "rec_set",
        "recursive",
        "set",
    )

    def __init__(self) -> None:
        self.set = 0
        self.clear = 0
        self.rec_set = 0
        """MOUNT_ATTR_* for the whole tree (rro, rnosuid ...)"""
        self.rec_clear = 0
        self.propagation: list[int] = []
        self.data: list[str] = []
        self.bind = False
        self.recursive = False
        self.idmap = ""
        self.copy_up = False


def parse_options(names: Iterable[str]) -> Options:
    """Take OCI options apart; what is not known here is the file system's."""
    result = Options()
    for name in names:
        if name in FLAGS:
            on, off = FLAGS[name]
            result.set = result.set & ~off | on
            result.clear = result.clear & ~on | off
        elif name in PROPAGATION:
            result.propagation.append(PROPAGATION[name])
        elif name in ("bind", "rbind"):
            result.bind = True
            result.recursive = name == "rbind"
        elif name in ("idmap", "ridmap"):
            result.idmap = name
        elif name == "tmpcopyup":
            result.copy_up = True
        elif not (name.startswith("r") and _recursive(result, name[1:])):
            result.data.append(name)
    return result


def _recursive(result: Options, name: str) -> bool:
    """Take the recursive form of an attribute option (`rro` comes as `ro`); False if there is no such
    attribute.
    """
    on, off = FLAGS.get(name, (0, 0))
    if (on | off) not in ATTRIBUTES:
        return False
    attr_set, attr_clear = attributes(on, off)
    result.rec_set = result.rec_set & ~attr_clear | attr_set
    result.rec_clear |= attr_clear
    return True


def attributes(flags: int, cleared: int) -> tuple[int, int]:
    """(set, clear) of MOUNT_ATTR_* for MS_* flags that are asked for and flags that are asked to be off."""
    attr_set = attr_clear = 0
    for flag, (bits, field) in ATTRIBUTES.items():
        if flags & flag:
            attr_set |= bits
            attr_clear |= field
        elif cleared & flag and not field:
            attr_clear |= bits
        elif cleared & syscalls.MS_NOATIME & flag:  # "atime": back to the kernel's default, relatime
            attr_clear |= field
    return attr_set, attr_clear


class MountOp:
    """One mount. `tree` is the detached copy between stage() and attach()."""

    __slots__ = ("data", "destination", "fstype", "options", "source", "tree", "userns")

    def __init__(self, destination: str, source: str, fstype: str, options: Options) -> None:
        self.destination = destination
        self.source = source
        self.fstype = fstype
        self.options = options
        self.data = ",".join(options.data)
        self.tree = -1
        self.userns = -1
        """descriptor of the user namespace whose mappings an ID-mapped mount has"""

    def describe(self) -> str:
        """One line for the debug log."""
        return f"{self.fstype} {self.source} -> {self.destination}" + (f" [{self.data}]" if self.data else "")

    def stage(self) -> None:
        """What must be done with the agent's view and privileges. Raises OSError naming the source."""

    def attach(self, root: Root) -> None:
        """Mount inside `root`. Raises OSError or StepError."""
        raise NotImplementedError

    def close_userns(self) -> None:
        """The agent's copy of `userns` is not needed after the fork. Idempotent."""
        if self.userns >= 0:
            os.close(self.userns)
            self.userns = -1


class BindMount(MountOp):
    """A file or directory of the guest, shown inside the container."""

    __slots__ = ()

    def describe(self) -> str:
        """One line for the debug log."""
        return f"{'rbind' if self.options.recursive else 'bind'} {self.source} -> {self.destination}"

    def stage(self) -> None:
        """Copy the source's mount and set everything about the copy."""
        options = self.options
        flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if options.recursive else 0)
        self.tree = syscalls.open_tree(syscalls.AT_FDCWD, self.source, flags)
        set_attributes(self.tree, *attributes(options.set, options.clear))
        if options.idmap:
            recursive = syscalls.AT_RECURSIVE if options.idmap == "ridmap" else 0
            syscalls.mount_setattr(self.tree, recursive, syscalls.MOUNT_ATTR_IDMAP, userns=self.userns)
        finish_mount(self.tree, options)

    def attach(self, root: Root) -> None:
        """Put the finished copy in its place."""
        is_directory = stat.S_ISDIR(os.fstat(self.tree).st_mode)
        target = root.directory(self.destination) if is_directory else root.file(self.destination)
        _refuse_procfs(target, self.destination)
        syscalls.move_mount(self.tree, target)
        os.close(target)
        os.close(self.tree)


class FilesystemMount(MountOp):
    """A new file system, such as tmpfs, devpts, mqueue."""

    __slots__ = ("stage_at",)

    def __init__(self, destination: str, source: str, fstype: str, options: Options) -> None:
        super().__init__(destination, source, fstype, options)
        self.stage_at = ""
        """directory to mount it at first, where only the agent's privileges allow to mount it"""

    def stage(self) -> None:
        """Mount it outside (in a mount namespace of one's own) and take it from there."""
        if self.stage_at:
            self.mount(self.stage_at, self.options.set)
            self.tree = syscalls.open_tree(syscalls.AT_FDCWD, self.stage_at, syscalls.OPEN_TREE_CLONE)
            syscalls.umount2(self.stage_at, syscalls.MNT_DETACH)

    def attach(self, root: Root) -> None:
        """Mount it at its place, then what mount(2) cannot say."""
        target = self.target(root)
        self._attach_at(target)
        options = self.options
        if options.propagation or options.rec_set or options.rec_clear or options.copy_up:
            top = root.open(self.destination)
            if options.copy_up:
                copy_up(target, top)
            finish_mount(top, options)
            os.close(top)
        os.close(target)

    def _attach_at(self, target: int) -> None:
        if self.tree >= 0:
            syscalls.move_mount(self.tree, target)
            os.close(self.tree)
            return
        flags = self.options.set & ~syscalls.MS_RDONLY if self.writable_first() else self.options.set
        self.mount(fd_path(target), flags)

    def target(self, root: Root) -> int:
        """Where it goes, made if it is missing."""
        return root.directory(self.destination)

    def mount(self, target: str, flags: int) -> None:
        """mount(2) itself."""
        syscalls.mount(self.source or self.fstype, target, self.fstype, flags, self.data)

    def writable_first(self) -> bool:
        """A read-only tmpfs gets its mount points and devices first; seal() ends that."""
        return self.fstype == "tmpfs" and bool(self.options.set & syscalls.MS_RDONLY)


class KernelMount(FilesystemMount):
    """procfs or sysfs: never where a symlink of the image leads."""

    __slots__ = ()

    def target(self, root: Root) -> int:
        """Where it goes, made if it is missing."""
        return root.plain_directory(self.destination)


class CgroupMount(FilesystemMount):
    """The container's view of cgroup v2; `directory` is its own cgroup, shown where it has no cgroup
    namespace.
    """

    __slots__ = ("directory",)

    def __init__(self, destination: str, options: Options, directory: str) -> None:
        super().__init__(destination, "cgroup", "cgroup2", options)
        self.data = ""
        self.directory = directory

    def mount(self, target: str, flags: int) -> None:
        """A new mount of the hierarchy, which begins at the root of the cgroup namespace, or a bind."""
        if not self.directory:
            try:
                syscalls.mount("cgroup", target, "cgroup2", flags)
                return
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EBUSY):
                    raise
        bind_existing(self.directory or CGROUP2_MOUNT, target, flags)


def bind_existing(source: str, target: str, flags: int) -> None:
    """Bind the agent's own `source`, with all below it, at `target`."""
    tree = syscalls.open_tree(syscalls.AT_FDCWD, source, syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)
    attr_set, attr_clear = attributes(flags, 0)
    syscalls.mount_setattr(tree, syscalls.AT_RECURSIVE, attr_set, attr_clear)
    fd = os.open(target, os.O_PATH | os.O_CLOEXEC)
    syscalls.move_mount(tree, fd)
    os.close(fd)
    os.close(tree)


def set_attributes(fd: int, attr_set: int, attr_clear: int) -> None:
    """Change one mount's attributes, if there is anything to change."""
    if attr_set or attr_clear:
        syscalls.mount_setattr(fd, 0, attr_set, attr_clear)


def finish_mount(fd: int, options: Options) -> None:
    """Recursive attributes and propagation of the mount whose top `fd` is."""
    if options.rec_set or options.rec_clear:
        syscalls.mount_setattr(fd, syscalls.AT_RECURSIVE, options.rec_set, options.rec_clear)
    for flags in options.propagation:
        recursive = syscalls.AT_RECURSIVE if flags & syscalls.MS_REC else 0
        syscalls.mount_setattr(fd, recursive, propagation=flags & ~syscalls.MS_REC)


def _refuse_procfs(target: int, destination: str) -> None:
    """A bind over procfs could fake what the runtime and the container read there (CVE-2019-16884)."""
    if syscalls.filesystem_type(target) == syscalls.PROC_SUPER_MAGIC and destination not in PROC_FILES:
        raise StepError("mount", errno.EPERM, destination, "cannot be mounted because it is inside /proc")


# --- planning -----------------------------------------------------------------------------------------------


def plan(mounts: Iterable[oci_pb2.Mount], bundle: str, cgroup_directory: str = "") -> list[MountOp]:
    """The operations for OCI mounts, in their order. Pure. Raises InvalidSpec.

    `bundle` is what relative bind sources are relative to (guest path); `cgroup_directory` is the container's
    cgroup as the agent sees it, "" when the container has its own cgroup namespace.
    """
    return [
        _plan_one(mount, f"mounts[{index}]", bundle, cgroup_directory) for index, mount in enumerate(mounts)
    ]


def _plan_one(mount: oci_pb2.Mount, field: str, bundle: str, cgroup_directory: str) -> MountOp:
    destination = normal_path(mount.destination)
    if destination == "/":
        raise InvalidSpec(field + ".destination", f"{mount.destination!r} is the container's root itself")
    options = parse_options(mount.options)
    if mount.UIDMappings or mount.GIDMappings:
        options.idmap = options.idmap or "idmap"
    if options.bind or mount.type == "bind":
        return _plan_bind(mount, field, destination, options, bundle)
    if options.idmap:
        raise InvalidSpec(field + ".options", "only bind mounts can be ID-mapped")
    if options.copy_up and mount.type != "tmpfs":
        raise InvalidSpec(field + ".options", "tmpcopyup is for tmpfs only")
    if not mount.type:
        raise InvalidSpec(field + ".type", "is missing")
    if mount.type in ("cgroup", "cgroup2"):
        return CgroupMount(destination, options, cgroup_directory)
    if mount.type in ("proc", "sysfs"):
        return KernelMount(destination, mount.source, mount.type, options)
    return FilesystemMount(destination, mount.source, mount.type, options)


def _plan_bind(
    mount: oci_pb2.Mount, field: str, destination: str, options: Options, bundle: str
) -> BindMount:
    if not mount.source:
        raise InvalidSpec(field + ".source", "a bind mount needs one")
    if destination == "/proc":
        raise InvalidSpec(field + ".destination", "/proc can only be procfs")
    # Unknown options of a bind have no effect, as mount(2) ignores its data there.
    return BindMount(destination, os.path.join(bundle, mount.source), "bind", options)


def stage_what_user_namespaces_may_not(
    operations: Iterable[MountOp], spaces: namespaces.Plan, directory: str
) -> None:
    """Have sysfs and mqueue mounted outside, unless what they show is the user namespace's own.

    A mount of them needs privileges over the network namespace, or the ipc namespace, that it shows; the
    pod's belong to the guest.
    """
    shows = {"sysfs": syscalls.CLONE_NEWNET, "mqueue": syscalls.CLONE_NEWIPC}
    for operation in operations:
        kind = shows.get(operation.fstype, 0)
        if kind and not spaces.new & kind and isinstance(operation, FilesystemMount):
            operation.stage_at = directory


def normal_path(path: str) -> str:
    """An absolute path without empty and "." parts; ".." stays, for the kernel to resolve."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def id_maps(mount: oci_pb2.Mount, container: namespaces.Plan) -> tuple[IdMap, IdMap]:
    """The mappings of an ID-mapped mount: its own, or the container's."""
    if mount.UIDMappings or mount.GIDMappings:
        return namespaces.id_map(mount.UIDMappings), namespaces.id_map(mount.GIDMappings)
    return container.uid_map, container.gid_map


# --- after the mounts ---------------------------------------------------------------------------------------


def seal(root: Root, operations: Iterable[MountOp]) -> None:
    """Make those read-only that had to be writable while their content was made."""
    for operation in operations:
        if isinstance(operation, FilesystemMount) and operation.writable_first():
            top = root.open(operation.destination)
            syscalls.mount_setattr(top, 0, syscalls.MOUNT_ATTR_RDONLY)
            os.close(top)


def copy_up(source: int, target: int) -> None:
    """Copy a directory's content (descriptors of any kind): files, directories, symlinks, with owner, mode
    and times.
    """
    here = os.open(fd_path(source), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    there = os.open(fd_path(target), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in os.listdir(here):
        info = os.stat(name, dir_fd=here, follow_symlinks=False)
        _copy_entry(name, info, here, there)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=there, follow_symlinks=False)
        if not stat.S_ISLNK(info.st_mode):
            os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=there)
        os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=there, follow_symlinks=False)
    os.close(here)
    os.close(there)


def _copy_entry(name: str, info: os.stat_result, here: int, there: int) -> None:
    if stat.S_ISDIR(info.st_mode):
        os.mkdir(name, 0o700, dir_fd=there)
        below = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        copy = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=there)
        copy_up(below, copy)
        os.close(below)
        os.close(copy)
    elif stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(name, dir_fd=here), name, dir_fd=there)
    elif stat.S_ISREG(info.st_mode):
        _copy_file(name, here, there)
    else:
        os.mknod(name, info.st_mode, info.st_rdev, dir_fd=there)


def _copy_file(name: str, here: int, there: int) -> None:
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=there)
    while os.sendfile(target, source, None, 1 << 20):  # type: ignore[arg-type, unused-ignore]
        pass
    os.close(source)
    os.close(target)
