"""The directory that a guest sees, and the mounts in it.

Owns: share/ of a pod: `CONTAINER/rootfs` and `CONTAINER/N` (N: index of a mount in config.json), each a
mount of its own; CONTAINER.1 and so on for an id that comes again. Must not know: virtiofsd, the guest's mounts.
Called by sandbox/launch.py (life) and sandbox/placement.py (contents).

The exported directory is a mount of itself: read-only, so that a guest, which owns all it can write to, can
neither plant a symbolic link nor rename a directory on the way to a mount point; shared, so that mounts
that come later reach the namespace of a running virtiofsd. Directories are made beneath it, in the file
system that it covers. Containers' files are never walked through: mounts are cloned from the host's side
and attached by descriptor. What is removed is unmounted first, then checked in mountinfo, then taken away
by rmdir, never recursively.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading

from agent.linux import syscalls as sc
from shim.errors import AlreadyExists, HakoError

GUEST_ROOT = "/run/kata-containers/shared/containers"  # where the agent mounts the share (kata.md 2.5)
TAG = "kataShared"
UMOUNT_NOFOLLOW = 8
ROOTFS = "rootfs"
# No symbolic links, no "..", no magic links: nothing of a guest's making may decide where a path leads.
STRICT = sc.RESOLVE_BENEATH | sc.RESOLVE_NO_SYMLINKS | sc.RESOLVE_NO_MAGICLINKS
# Devices and set-id programs act in the guest, whose kernel looks at neither of the host's flags.
HARMLESS = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV


class ShareTree:
    """See the module.

    Thread-safe. `directory` is the host path of the exported directory; its parent exists.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._mounts: dict[str, list[str]] = {}
        self._places: dict[str, str] = {}
        self._used: set[str] = set()
        self._closed = False
        os.makedirs(directory, mode=0o755, exist_ok=True)
        unmount(directory)  # of a pod that died and had this id
        self._below = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._export = _exported(self._below)
        except OSError as exc:
            os.close(self._below)
            raise HakoError(exc.strerror or str(exc), step="make the share", object=directory) from exc

    def add_rootfs(self, container_id: str, host_path: str, readonly: bool) -> str:
        """Show the container's root file system; its path in the guest. Raises HakoError."""
        return self._add(container_id, ROOTFS, host_path, readonly=readonly, propagation="slave")

    def add_volume(
        self, container_id: str, number: int, host_path: str, readonly: bool, propagation: str = "private"
    ) -> str:
        """Show a host file or directory with all that is mounted below it; its path in the guest. Raises
        HakoError.

        A read-only one is read-only on the host too, down to its last submount. With propagation "slave" or
        "shared" later mounts on the host appear in the guest; the guest's own never reach the host.
        """
        return self._add(container_id, str(number), host_path, readonly=readonly, propagation=propagation)

    def remove(self, container_id: str) -> None:
        """Take away all that the container has in the share.

        Nothing there is fine. Raises HakoError if it stays.
        """
        with self._lock:
            self._remove(container_id)

    def close(self) -> None:
        """Take everything away, the export too. Repeatable. Raises HakoError for what stays."""
        with self._lock:
            if self._closed:
                return
            for container_id in list(self._mounts):
                self._remove(container_id)
            self._closed = True
            os.close(self._export)
            unmount(self.directory)
            os.close(self._below)
            _check_unmounted(self.directory)
            os.rmdir(self.directory)

    def _add(self, container_id: str, name: str, source: str, *, readonly: bool, propagation: str) -> str:
        with self._lock:
            if name in self._mounts.get(container_id, ()):
                raise AlreadyExists("is in the share already", object=f"{container_id}/{name}")
            place = self._place(_component(container_id))
            try:
                self._attach(container_id, place, name, source, readonly=readonly, propagation=propagation)
            except OSError as exc:
                raise HakoError(exc.strerror or str(exc), step=f"share {source}", object=f"{place}/{name}") from exc
            return f"{GUEST_ROOT}/{place}/{name}"

    def _place(self, container_id: str) -> str:
        """The container's directory. No name comes twice: a guest that knows it may go on to what was there before."""
        if container_id not in self._places:
            names = (f"{container_id}.{number}" if number else container_id for number in itertools.count())
            self._places[container_id] = next(name for name in names if name not in self._used)
            self._used.add(self._places[container_id])
        return self._places[container_id]

    def _attach(self, container_id: str, place: str, name: str, source: str, *, readonly: bool, propagation: str) -> None:
        tree = cloned(source, readonly=readonly, propagation=propagation)
        try:
            names = self._mounts.setdefault(container_id, [])
            self._make_mount_point(place, name, directory=stat.S_ISDIR(os.fstat(tree).st_mode))
            names.append(name)
            target = sc.openat2(self._export, f"{place}/{name}", os.O_PATH, 0, STRICT)
            try:
                sc.move_mount(tree, target)
            finally:
                os.close(target)
        finally:
            os.close(tree)

    def _make_mount_point(self, place: str, name: str, *, directory: bool) -> None:
        """Beneath the export, where only we write.

        What an interrupted attempt left there is taken away first.
        """
        _make_directory(place, self._below)
        parent = sc.openat2(self._below, place, os.O_PATH | os.O_DIRECTORY, 0, STRICT)
        try:
            _remove_empty(name, parent)
            if directory:
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                os.close(
                    os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, 0o644, dir_fd=parent)
                )
        finally:
            os.close(parent)

    def _remove(self, container_id: str) -> None:
        names = self._mounts.get(container_id)
        if names is None:
            return
        place = self._places[container_id]
        path = os.path.join(self.directory, place)
        for name in reversed(names):
            unmount(os.path.join(path, name))
        _check_unmounted(path)
        try:
            self._remove_mount_points(place, names)
        except OSError as exc:
            raise HakoError(exc.strerror or str(exc), step="remove from the share", object=path) from exc
        del self._mounts[container_id], self._places[container_id]

    def _remove_mount_points(self, place: str, names: list[str]) -> None:
        parent = sc.openat2(self._below, place, os.O_PATH | os.O_DIRECTORY, 0, STRICT)
        try:
            for name in names:
                _remove_empty(name, parent)
        finally:
            os.close(parent)
        _remove_empty(place, self._below)


def cloned(source: str, *, readonly: bool, propagation: str) -> int:
    """A detached copy of the mounts at and below host path `source`, as a descriptor.

    Its propagation: "private" is closed both ways, all others receive what the host mounts later.
    """
    tree = sc.open_tree(sc.AT_FDCWD, source, sc.OPEN_TREE_CLONE | sc.AT_RECURSIVE)
    try:
        attributes = HARMLESS | (sc.MOUNT_ATTR_RDONLY if readonly else 0)
        kind = sc.MS_PRIVATE if propagation == "private" else sc.MS_SLAVE
        sc.mount_setattr(tree, sc.AT_RECURSIVE, attributes, 0, kind)
    except BaseException:
        os.close(tree)
        raise
    return tree


def unmount(path: str) -> None:
    """Take away every mount at host path `path`; none is fine. Never follows a symbolic link at its end.

    Detached at once, because virtiofsd may still have files open in its copy, which goes with it.
    """
    while True:
        try:
            sc.umount2(path, sc.MNT_DETACH | UMOUNT_NOFOLLOW)
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):  # no mount point (any more)
                return
            raise HakoError(exc.strerror or str(exc), step="unmount", object=path) from exc


def mounts_below(directory: str) -> list[str]:
    """Mount points at and below host path `directory`, in the order in which they were made (proc(5))."""
    prefix = os.path.realpath(os.path.dirname(directory)) + "/" + os.path.basename(directory)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        points = [_unescaped(line.split(" ")[4]) for line in stream]
    return [point for point in points if point == prefix or point.startswith(prefix + "/")]


def _unescaped(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def _exported(below: int) -> int:
    """Mount the directory on itself; a descriptor of the new mount's root."""
    tree = sc.open_tree(below, "", sc.OPEN_TREE_CLONE | sc.AT_EMPTY_PATH)
    try:
        sc.mount_setattr(tree, 0, HARMLESS | sc.MOUNT_ATTR_RDONLY, 0, sc.MS_PRIVATE)
        sc.move_mount(tree, below)
        sc.mount_setattr(tree, 0, 0, 0, sc.MS_SHARED)
    except BaseException:
        os.close(tree)
        raise
    return tree


def _make_directory(name: str, parent: int) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        pass


def _remove_empty(name: str, parent: int) -> None:
    """An empty directory, or a file, that was a mount point; missing is fine."""
    try:
        os.rmdir(name, dir_fd=parent)
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass


def _check_unmounted(path: str) -> None:
    left = mounts_below(path)
    if left:
        raise HakoError(f"still mounted: {', '.join(left)}", step="unmount", object=path)


def _component(name: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise HakoError("not a usable container id", step="share", object=repr(name))
    return name
