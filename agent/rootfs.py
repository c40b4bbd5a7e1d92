"""The container's root file system: opening and making paths inside it, masking, and becoming its root.

Owns: every path resolution inside a rootfs. All of it is openat2(RESOLVE_IN_ROOT): the image, its volumes and
other containers that share them are hostile, so a symlink is followed as the container would follow it and
magic links of procfs never. What was opened is used by descriptor (/proc/self/fd/N of the agent's own
procfs), never by name again.

Called by agent.mounts and agent.devices with a Root, by agent.container for the rest; runs in the child.
"""

from __future__ import annotations

import errno
import os
import stat

from agent.errors import InvalidSpec, StepError
from agent.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Maker = Callable[[str, int], None]

IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
MAX_LINKS = 40
MAX_RACES = 32

PROPAGATION = {
    "private": syscalls.MS_PRIVATE,
    "rprivate": syscalls.MS_PRIVATE | syscalls.MS_REC,
    "slave": syscalls.MS_SLAVE,
    "rslave": syscalls.MS_SLAVE | syscalls.MS_REC,
    "shared": syscalls.MS_SHARED,
    "rshared": syscalls.MS_SHARED | syscalls.MS_REC,
    "unbindable": syscalls.MS_UNBINDABLE,
    "runbindable": syscalls.MS_UNBINDABLE | syscalls.MS_REC,
}
# The two forms of the kernel's first root, which pivot_root(2) refuses to leave.
RAMFS_MAGIC, TMPFS_MAGIC = 0x858458F6, 0x01021994


class Root:
    """A directory that is (to be) the container's "/". Paths are the container's; descriptors are O_PATH."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def open(self, path: str, flags: int = os.O_PATH, resolve: int = 0) -> int:
        """Open as the container would see `path`. Raises OSError."""
        for attempt in range(MAX_RACES):
            try:
                return syscalls.openat2(self.fd, path or ".", flags, 0, IN_ROOT | resolve)
            except OSError as error:
                # Somebody renames directories meanwhile, so that the kernel cannot be sure where ".." leads.
                if error.errno != errno.EAGAIN or attempt == MAX_RACES - 1:
                    raise
        raise AssertionError("unreachable")

    def directory(self, path: str) -> int:
        """Open a directory, made with its parents where it is missing."""
        try:
            return self.open(path, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            pass
        if self._make_last(path):
            return self.open(path, os.O_PATH | os.O_DIRECTORY)
        return self.open(self._make(path, make_directory), os.O_PATH | os.O_DIRECTORY)

    def file(self, path: str) -> int:
        """Open a file of any kind, made empty with its parents where it is missing."""
        try:
            return self.open(path)
        except FileNotFoundError:
            return self.open(self._make(path, make_file))

    def plain_directory(self, path: str) -> int:
        """Open or make a directory that no symlink leads to: where procfs and sysfs go (CVE-2019-19921)."""
        try:
            return self._no_symlinks(path)
        except FileNotFoundError:
            os.close(self.directory(path))
            return self._no_symlinks(path)

    def parent(self, path: str) -> tuple[int, str]:
        """The directory that `path` is in, made where it is missing, and the last name."""
        directory, _, name = path.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            raise InvalidSpec(path, "must name something in the container")
        return self.directory(directory or "/"), name

    def _no_symlinks(self, path: str) -> int:
        try:
            return self.open(path, os.O_PATH | os.O_DIRECTORY, syscalls.RESOLVE_NO_SYMLINKS)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                detail = "must be mounted on an ordinary directory, not reached through a symlink"
                raise StepError("mount", error.errno, path, detail) from None
            raise

    def _make_last(self, path: str) -> bool:
        """Make a directory whose parent exists, the usual case; False where it takes more."""
        above, _, name = path.rpartition("/")
        if name in ("", ".", ".."):
            return False
        try:
            directory = self.open(above, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            return False
        try:
            make_directory(name, directory)
        except FileExistsError:
            return False  # a symlink that leads to nothing
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
        finally:
            os.close(directory)
        return True

    def _make(self, path: str, make_last: Maker) -> str:
        """Make what is missing of `path`; its form without symlinks. Also makes what a dangling symlink
        points at.
        """
        done: list[str] = []
        todo = path.split("/")[::-1]
        links = 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del done[-1:]
                continue
            link = self._step(done, name, make_directory if any(todo) else make_last)
            if link is None:
                done.append(name)
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if link.startswith("/"):
                done.clear()
            todo += link.split("/")[::-1]
        return "/" + "/".join(done)

    def _step(self, done: list[str], name: str, make: Maker) -> str | None:
        """Make `name` in the directory `done` unless it is there; where a symlink points to if it is one."""
        path = "/".join([*done, name])
        try:
            fd = self.open(path, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            self._make_one(done, name, make)
            return None
        try:
            return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
        finally:
            os.close(fd)

    def _make_one(self, done: list[str], name: str, make: Maker) -> None:
        directory = self.open("/".join(done), os.O_PATH | os.O_DIRECTORY)
        try:
            make(name, directory)
        except FileExistsError:
            pass
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), "/" + "/".join([*done, name])) from None
        finally:
            os.close(directory)


def make_directory(name: str, directory: int) -> None:
    """mkdirat; never follows a symlink called `name`."""
    os.mkdir(name, 0o755, dir_fd=directory)


def make_file(name: str, directory: int) -> None:
    """An empty file; never opens or follows what is there already."""
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory))


def fd_path(fd: int) -> str:
    """A path to exactly what `fd` is open at, for calls that take only paths. The agent's procfs must be
    visible.
    """
    return f"/proc/self/fd/{fd}"


def propagation(name: str) -> int:
    """The flags of linux.rootfsPropagation; slave, as for runc, where the spec says nothing. Raises
    InvalidSpec.
    """
    if name and name not in PROPAGATION:
        raise InvalidSpec("linux.rootfsPropagation", f"unknown propagation {name!r}")
    return PROPAGATION[name or "rslave"]


def clone_tree(path: str) -> int:
    """A detached copy of all that is mounted at and below `path` (in the agent's tree)."""
    return syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)


def set_tree_propagation(path: str, flags: int) -> None:
    """First act in a new mount namespace: nothing may propagate to the agent's, `flags` decides what still
    comes in.
    """
    # An unbindable tree could not be cloned; that is applied to the finished container instead.
    first = flags if not flags & syscalls.MS_UNBINDABLE else syscalls.MS_PRIVATE | syscalls.MS_REC
    syscalls.mount(None, "/", None, first)
    if flags & syscalls.MS_SHARED:
        _make_parent_private(path)


def _make_parent_private(path: str) -> None:
    """The mount that holds `path` must not be shared, or the attached rootfs would appear in the agent's tree
    too.
    """
    while True:
        try:
            syscalls.mount(None, path, None, syscalls.MS_PRIVATE)
            return
        except OSError as error:
            if (
                error.errno != errno.EINVAL or path == "/"
            ):  # EINVAL: not a mount point, try the directory above
                raise
        path = os.path.dirname(path)


def attach(tree: int, path: str) -> Root:
    """Mount the detached rootfs on its own directory, as pivot_root wants a mount point."""
    target = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    syscalls.move_mount(tree, target)
    os.close(target)
    return Root(tree)


def mask(root: Root, paths: Iterable[str]) -> None:
    """Hide files behind the agent's /dev/null and directories behind an empty read-only tmpfs; missing ones
    are fine.
    """
    for path in paths:
        fd = _open_existing(root, path)
        if fd < 0:
            continue
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            syscalls.mount("tmpfs", fd_path(fd), "tmpfs", syscalls.MS_RDONLY, "nr_blocks=1,nr_inodes=1")
        else:
            syscalls.mount("/dev/null", fd_path(fd), None, syscalls.MS_BIND)
        os.close(fd)


def make_readonly(root: Root, paths: Iterable[str]) -> None:
    """Mount paths read-only on themselves; missing ones are fine."""
    flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE | syscalls.AT_EMPTY_PATH
    for path in paths:
        fd = _open_existing(root, path)
        if fd < 0:
            continue
        tree = syscalls.open_tree(fd, "", flags)
        syscalls.mount_setattr(tree, 0, syscalls.MOUNT_ATTR_RDONLY)
        syscalls.move_mount(tree, fd)
        os.close(tree)
        os.close(fd)


def _open_existing(root: Root, path: str) -> int:
    try:
        return root.open(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return -1
        raise


def make_root_readonly(root: Root) -> None:
    """The root mount alone; mounts in it keep what they are."""
    syscalls.mount_setattr(root.fd, 0, syscalls.MOUNT_ATTR_RDONLY)


def set_root_propagation(root: Root, flags: int) -> None:
    """What mounts made inside do to others. After pivot(), as a shared root cannot be pivoted to."""
    kind = flags & (syscalls.MS_SHARED | syscalls.MS_UNBINDABLE)
    if kind:
        recursive = syscalls.AT_RECURSIVE if flags & syscalls.MS_REC else 0
        syscalls.mount_setattr(root.fd, recursive, propagation=kind)


def pivot(root: Root, *, shared: bool) -> None:
    """Make `root` the "/" of this mount namespace and drop everything outside of it.

    `shared`: the old tree is a peer of the agent's, which must not see it unmounted.

    The kernel does not pivot away from its first root (an initramfs that nobody has moved away from); there
    the rootfs is moved over "/", which hides the old root as switch_root(8) does. The agent's init should
    have moved already.
    """
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if shared else -1
    os.fchdir(root.fd)
    try:
        syscalls.pivot_root(".", ".")
    except OSError as error:
        if error.errno != errno.EINVAL or not _on_first_root():
            raise
        syscalls.mount(".", "/", None, syscalls.MS_MOVE)
        os.chroot(".")
    else:
        if shared:
            os.fchdir(old)
            syscalls.mount(None, ".", None, syscalls.MS_SLAVE | syscalls.MS_REC)
            os.close(old)
        # The old root lies on top of the new one now, and umount takes the topmost mount at ".".
        syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")


def _on_first_root() -> bool:
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    kind = syscalls.filesystem_type(fd)
    os.close(fd)
    return kind in (RAMFS_MAGIC, TMPFS_MAGIC)
