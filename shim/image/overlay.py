"""A container's own view of an image: an overlay mount whose upper directory goes with the container.

Owns: CACHE/oci/containers/ID/{upper,work,merged}. Must not know: images' names, the VM. Called by the CLI
and by whoever deletes the container. The upper directory lies in the cache, on disk: in /run it would take
memory.

What a container has written is hostile: it is never followed, and removed only when nothing is mounted in it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from agent.linux import syscalls
from shim.errors import AlreadyExists, HakoError
from shim.image import workspace
from shim.image.erase import remove_tree
from shim.image.errors import ImageError

# A device node or setuid program that a container makes must be nothing on the host; the guest does not ask
# the host's mount flags.
FLAGS = syscalls.MS_NODEV | syscalls.MS_NOSUID
STEP = "mount root filesystem"


def mount(container_id: str, rootfs: str) -> str:
    """Mount an overlay over `rootfs` (host path, stays unchanged) for this container; the merged host path.

    Raises AlreadyExists, ImageError; nothing is left then.
    """
    directory = _directory(container_id)
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        raise AlreadyExists("the container has a root filesystem", step=STEP, object=container_id) from None
    try:
        return _mount(directory, rootfs)
    except OSError as exc:
        remove_tree(directory)
        hint = "HAKO_CACHE_DIR must be on a file system that can be an overlay's upper one (ext4, xfs, tmpfs)"
        raise ImageError(str(exc), step=STEP, object=container_id, hint=hint) from exc


def _mount(directory: str, rootfs: str) -> str:
    upper, work, merged = (os.path.join(directory, name) for name in ("upper", "work", "merged"))
    for path in (upper, work, merged):
        os.mkdir(path, 0o700)
    _copy_root(rootfs, upper)
    options = f"lowerdir={rootfs},upperdir={upper},workdir={work}"
    syscalls.mount("overlay", merged, "overlay", FLAGS, options)
    return merged


def _copy_root(rootfs: str, upper: str) -> None:
    """The merged root directory has the upper one's owner and mode: make them the image's."""
    found = os.stat(rootfs)
    os.chown(upper, found.st_uid, found.st_gid)
    os.chmod(upper, stat.S_IMODE(found.st_mode))


def unmount(container_id: str) -> None:
    """Unmount and delete what `mount` made; nothing there is no error.

    Raises HakoError if something is mounted on top or inside; nothing is deleted then.
    """
    directory = _directory(container_id)
    merged = os.path.join(directory, "merged")
    try:
        syscalls.umount2(merged, 0)
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            syscalls.umount2(merged, syscalls.MNT_DETACH)
        elif exc.errno not in (errno.EINVAL, errno.ENOENT):  # not mounted, not there
            raise HakoError(str(exc), step="unmount root filesystem", object=merged) from exc
    left = mounts_below(directory)
    if left:
        raise HakoError(f"still mounted: {', '.join(left)}", step="remove root filesystem", object=directory)
    remove_tree(directory)


def mounts_below(directory: str) -> list[str]:
    """Mount points in or at `directory`, from /proc/self/mountinfo."""
    with open("/proc/self/mountinfo", "rb") as file:
        points = [_unescape(line.split()[4]) for line in file]
    return [point for point in points if point == directory or point.startswith(directory + "/")]


def _unescape(field: bytes) -> str:
    r"""A path as mountinfo writes it: blank, tab, newline and backslash are octal (\040)."""
    for octal in (b"040", b"011", b"012", b"134"):
        field = field.replace(b"\\" + octal, bytes([int(octal, 8)]))
    return os.fsdecode(field)


def sweep(alive: Callable[[str], bool]) -> list[str]:
    """Unmount and delete those of containers for which `alive` says no; answers with their ids."""
    gone = [name for name in sorted(os.listdir(workspace.directory("containers"))) if not alive(name)]
    for name in gone:
        unmount(name)
    return gone


def _directory(container_id: str) -> str:
    if "/" in container_id or container_id in ("", ".", ".."):
        raise HakoError("not a usable id", step=STEP, object=repr(container_id))
    return os.path.join(workspace.directory("containers"), container_id)
