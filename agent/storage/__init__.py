"""Storages: what the host asks the guest to mount for a sandbox or a container.

Owns: Kata's storage drivers and their options. Reference counts of shared storages are the sandbox's
(agent/sandbox.py); here is only mounting and unmounting. Finding devices is in devices.py, mount points in
a tree that containers can change are opened in paths.py, group ownership is in fsgroup.py.

A driver is a function in DRIVERS; it makes `storage.mount_point` what it should be. Options that are not
known are the file system's, as for mount(8).
"""

from __future__ import annotations

import errno
import os

from agent import arrival, mounts
from agent.errors import AgentError, InvalidSpec, Unsupported, step_error
from agent.linux import syscalls, uevent
from agent.rootfs import fd_path
from agent.storage import devices, fsgroup, paths, readahead

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterable

    from agent.api import agent_pb2

    Driver = Callable[[agent_pb2.Storage, float], None]

DEVICE_SECONDS = 3.0
"""kernel parameter agent.hotplug_timeout"""
HUGE_PAGES = "/sys/kernel/mm/hugepages"
_MAKE_DIRECTORY = "io.katacontainers.volume.overlayfs.create_directory="
_LONGEST_DATA = 4095  # mount(2) takes one page


def mount(storage: agent_pb2.Storage, seconds: float = DEVICE_SECONDS) -> str:
    """Mount one storage and give its group its rights; the mount point (guest path).

    Waits at most `seconds` for a device. Raises Unsupported for an unknown driver, InvalidSpec, NotFound
    for a device that does not come, StepError.
    """
    driver = DRIVERS.get(storage.driver)
    if driver is None:
        raise Unsupported(f"storage driver {storage.driver!r} is not supported in this guest")
    if not storage.mount_point.startswith("/"):
        raise InvalidSpec("storages.mount_point", f"{storage.mount_point!r} is not an absolute path")
    try:
        driver(storage, seconds)
        if storage.HasField("fs_group"):
            _give_to_group(storage)
    except OSError as error:
        raise step_error(f"mount {storage.driver} storage", error) from error
    return storage.mount_point


def mount_all(storages: Iterable[agent_pb2.Storage], seconds: float = DEVICE_SECONDS) -> list[str]:
    """Mount all in order; the mount points. Where one fails, those before it are unmounted again."""
    done: list[str] = []
    try:
        for storage in storages:
            done.append(mount(storage, seconds))
    except BaseException:
        for point in reversed(done):
            try:
                unmount(point)
            except AgentError:
                pass  # the first failure is what the caller must hear of
        raise
    return done


def unmount(mount_point: str) -> bool:
    """Take away what is mounted on top at `mount_point`, and the empty directory; False if nothing was
    mounted.

    A mount in use goes when its last user does. Raises StepError.
    """
    try:
        fd = paths.open_existing(mount_point)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise step_error("unmount storage", error) from error
    try:
        syscalls.umount2(fd_path(fd), syscalls.MNT_DETACH)
    except OSError as error:
        if error.errno == errno.EINVAL:  # not a mount point
            return False
        error.filename = mount_point
        raise step_error("unmount storage", error) from error
    finally:
        os.close(fd)
    paths.remove_directory(mount_point)
    return True


def update(storages: Iterable[agent_pb2.Storage]) -> None:
    """UpdateEphemeralMounts: give mounted tmpfs their new options (size). Raises StepError, InvalidSpec."""
    for storage in storages:
        if storage.driver != "ephemeral":
            continue
        options, _ = _split_options(storage.options)
        try:
            fd = paths.open_existing(storage.mount_point)
            try:
                flags = options.set | syscalls.MS_REMOUNT
                syscalls.mount(None, fd_path(fd), None, flags, ",".join(options.data))
            finally:
                os.close(fd)
        except OSError as error:
            error.filename = storage.mount_point
            raise step_error("change ephemeral storage", error) from error


def names() -> list[str]:
    """The drivers, for AgentDetails.storage_handlers."""
    return [name for name in DRIVERS if name]


# --- drivers ----------------------------------------------------------------------------------------------


def _virtio_fs(storage: agent_pb2.Storage, seconds: float) -> None:
    """A shared directory by its tag; its device may be on its way."""

    def attempt() -> bool | None:
        try:
            _mount_filesystem(storage, storage.source, storage.fstype or "virtiofs")
        except OSError as error:
            if error.errno == errno.EINVAL:  # the kernel has no device with this tag
                return None
            raise
        return True

    arrival.find(arrival.SHARE)
    if uevent.wait_for(attempt, ("virtio", "virtiofs"), seconds) is None:
        raise OSError(
            errno.EINVAL, f"no virtio-fs device has the tag {storage.source!r}", storage.mount_point
        )
    readahead.widen(storage.mount_point)


def _ephemeral(storage: agent_pb2.Storage, _seconds: float) -> None:
    """Memory of the guest: tmpfs, or huge pages."""
    _, own = _split_options(storage.options)
    if storage.fstype == "hugetlbfs":
        _allocate_huge_pages(storage)
    _mount_filesystem(storage, storage.source or "tmpfs", storage.fstype or "tmpfs")
    if "fsgid" in own:
        _give_directory(storage.mount_point, int(own["fsgid"]))


def _local(storage: agent_pb2.Storage, _seconds: float) -> None:
    """A directory in the guest: an emptyDir that never leaves it."""
    _, own = _split_options(storage.options)
    mode = own.get("mode", "0777")
    if not mode.isdigit() or "8" in mode or "9" in mode:
        raise InvalidSpec("storages.options", f"mode={mode} is not octal")
    fd = paths.directory(storage.mount_point)
    try:
        os.chmod(fd_path(fd), int(mode, 8))
    finally:
        os.close(fd)
    if "fsgid" in own:
        _give_directory(storage.mount_point, int(own["fsgid"]))


def _bind(storage: agent_pb2.Storage, _seconds: float) -> None:
    """A directory or file of the guest at another place, by way of a detached copy that is finished first.
    """
    options = mounts.parse_options(storage.options)
    source = paths.open_existing(storage.source)
    try:
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE | syscalls.AT_EMPTY_PATH
        tree = syscalls.open_tree(source, "", flags)
    finally:
        os.close(source)
    try:
        mounts.set_attributes(tree, *mounts.attributes(options.set, options.clear))
        mounts.finish_mount(tree, options)
        target = paths.like(tree, storage.mount_point)
        try:
            syscalls.move_mount(tree, target)
        finally:
            os.close(target)
    finally:
        os.close(tree)


def _overlay(storage: agent_pb2.Storage, _seconds: float) -> None:
    """Layers put together in the guest. An upper directory that is made for it looks like the layer below."""
    options = dict(option.partition("=")[::2] for option in storage.options)
    for option in storage.driver_options:
        if option.startswith(_MAKE_DIRECTORY):
            path = option[len(_MAKE_DIRECTORY) :]
            fd = paths.directory(path)
            try:
                if path == options.get("upperdir") and not os.listdir(fd_path(fd)):
                    _make_like(options.get("lowerdir", "").partition(":")[0], fd)
            finally:
                os.close(fd)
    _mount_filesystem(storage, storage.source or "overlay", "overlay")


def _make_like(pattern: str, directory: int) -> None:
    """Owner and mode of one directory for another: an overlay's root has those of its upper directory."""
    fd = paths.open_existing(pattern)
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    os.chown(fd_path(directory), found.st_uid, found.st_gid)
    os.chmod(fd_path(directory), found.st_mode & 0o7777)


def _pci_block(storage: agent_pb2.Storage, seconds: float) -> None:
    _mount_device(storage, devices.block(storage.source, seconds))


def _scsi_block(storage: agent_pb2.Storage, seconds: float) -> None:
    _mount_device(storage, devices.scsi_block(storage.source, seconds))


def _named_block(storage: agent_pb2.Storage, seconds: float) -> None:
    _mount_device(storage, devices.named(storage.source, seconds))


DRIVERS: dict[str, Driver] = {
    "virtio-fs": _virtio_fs,
    "ephemeral": _ephemeral,
    "local": _local,
    "blk": _pci_block,
    "scsi": _scsi_block,
    "mmioblk": _named_block,
    "nvdimm": _named_block,
    "overlayfs": _overlay,
    "bind": _bind,
    "": _bind,
    # Kata copies such a directory every 2 s so that inotify sees changes; a bind shows them as well,
    # without events.
    "watchable-bind": _bind,
}


# --- steps ------------------------------------------------------------------------------------------------


def _split_options(options: Iterable[str]) -> tuple[mounts.Options, dict[str, str]]:
    """mount(2)'s part, and those that the agent acts on: fsgid, and mode as far as a driver wants it."""
    own = {}
    rest = []
    for option in options:
        key, equals, value = option.partition("=")
        if key == "fsgid" and equals:
            if not value.isdigit():
                raise InvalidSpec("storages.options", f"fsgid={value} is not a group id")
            own[key] = value
            continue
        if key == "mode" and equals:
            own[key] = value
        rest.append(option)
    return mounts.parse_options(rest), own


def _mount_filesystem(storage: agent_pb2.Storage, source: str, fstype: str) -> None:
    options, _ = _split_options(storage.options)
    data = ",".join(options.data)
    if len(data.encode()) > _LONGEST_DATA:
        raise InvalidSpec("storages.options", f"{len(data)} characters are more than mount(2) takes")
    fd = paths.directory(storage.mount_point)
    try:
        syscalls.mount(source, fd_path(fd), fstype, options.set, data)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), storage.mount_point) from None
    finally:
        os.close(fd)
    if options.propagation or options.rec_set or options.rec_clear:
        top = paths.open_existing(storage.mount_point)
        try:
            mounts.finish_mount(top, options)
        finally:
            os.close(top)


def _mount_device(storage: agent_pb2.Storage, device: str) -> None:
    for option in storage.driver_options:
        if option.startswith("encryption_key="):
            raise Unsupported("encrypted block storages are not supported in this guest")
    if not storage.fstype:
        raise InvalidSpec("storages.fstype", f"is empty for block device {device}")
    _mount_filesystem(storage, device, storage.fstype)


def _allocate_huge_pages(storage: agent_pb2.Storage) -> None:
    """Have the kernel set aside as many more huge pages as the mount may need."""
    sizes = {key: value for key, _, value in (option.partition("=") for option in storage.options)}
    page, total = byte_count(sizes.get("pagesize", "")), byte_count(sizes.get("size", ""))
    if not page or total < page:
        raise InvalidSpec("storages.options", "huge pages need pagesize= and size=")
    path = f"{HUGE_PAGES}/hugepages-{page // 1024}kB/nr_hugepages"
    with open(path) as file:
        wanted = int(file.read()) + total // page
    with open(path, "w") as file:
        file.write(str(wanted))
    with open(path) as file:
        if int(file.read()) < wanted:
            raise OSError(
                errno.ENOMEM, f"only {page // 1024} kB pages up to the guest's memory are there", path
            )


def byte_count(text: str) -> int:
    """ "2M", "1024K", "1G", "2097152" or Kubernetes' "2Mi" as bytes; 0 for what is none."""
    text = text.removesuffix("i").removesuffix("B").upper()
    shift = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1:], 0)
    digits = text[:-1] if shift else text
    return int(digits) << shift if digits.isascii() and digits.isdigit() else 0


def _give_directory(point: str, gid: int) -> None:
    """The directory belongs to the group, and so does what is made in it."""
    fd = paths.open_existing(point)
    try:
        fsgroup.give(fd, gid)
    finally:
        os.close(fd)


def _give_to_group(storage: agent_pb2.Storage) -> None:
    options, _ = _split_options(storage.options)
    fd = paths.open_existing(storage.mount_point)
    try:
        if not options.set & syscalls.MS_RDONLY:
            fsgroup.give_tree(fd, storage.fs_group.group_id, storage.fs_group.group_change_policy)
    finally:
        os.close(fd)
