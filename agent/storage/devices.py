"""Block devices of the guest by the names that the host knows them by.

Owns: PCI paths, SCSI addresses, predicted names; the wait for a device that is being plugged, by uevents
with a deadline. Called by agent/storage and agent/sandbox.py (devices of a container).
"""

from __future__ import annotations

import errno
import os
import stat

from agent.errors import InvalidSpec, NotFound
from agent.linux import uevent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

SYS = "/sys"
ROOT_BUS = "0000:00"
_NOT_YET = (errno.ENOENT, errno.ENXIO, errno.ENODEV)
_SUBSYSTEMS = ("block", "pci", "virtio", "scsi", "nd", "dax")


def block(source: str, seconds: float, sys: str = SYS) -> str:
    """/dev path of a virtio block device given by its PCI path, or by its /dev path itself.

    Raises InvalidSpec, NotFound when it has not come after `seconds`.
    """
    if source.startswith("/dev/"):
        return named(source, seconds)
    hops = parse_pci_path(source)
    return _await("block device at PCI path", source, lambda: _find_pci(hops, sys), seconds)


def scsi_block(address: str, seconds: float, sys: str = SYS) -> str:
    """/dev path of the SCSI disk with `address` "ID:LUN". Raises like block()."""
    target, _, lun = address.partition(":")
    if not (target.isdigit() and lun.isdigit()):
        raise InvalidSpec("storages.source", f"{address!r} is not a SCSI address ID:LUN")
    _scan_scsi(target, lun, sys)
    return _await("SCSI disk", address, lambda: _find_scsi(target, lun, sys), seconds)


def named(path: str, seconds: float) -> str:
    """`path` itself, once it is a block device. Raises like block()."""
    if not path.startswith("/dev/") or ".." in path.split("/"):
        raise InvalidSpec("storages.source", f"{path!r} is not a path in /dev")
    return _await("block device", path, lambda: path if _is_block(path) else None, seconds)


def _await(kind: str, name: str, find: Callable[[], str | None], seconds: float) -> str:
    found = uevent.wait_for(find, _SUBSYSTEMS, seconds)
    if found is None:
        raise NotFound(kind, name)
    return found


def _is_block(path: str) -> bool:
    """Whether `path` is a block device that can be opened.

    The node in /dev is there some time before the kernel lets anybody open it (ENXIO); the disk's own event
    comes after that.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOT_YET:
            return False
        raise
    try:
        return stat.S_ISBLK(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


# --- PCI --------------------------------------------------------------------------------------------------


def parse_pci_path(path: str) -> list[tuple[int, int]]:
    """ "02/01" or "02/01.0" as (slot, function) of each hop from the root bus, in hexadecimal. Raises
    InvalidSpec.
    """
    hops = []
    for hop in path.split("/"):
        slot, _, function = hop.partition(".")
        try:
            numbers = (int(slot, 16), int(function or "0", 16))
        except ValueError:
            numbers = (-1, -1)
        if not (len(slot) <= 2 and 0 <= numbers[0] <= 31 and 0 <= numbers[1] <= 7):
            raise InvalidSpec("storages.source", f"{path!r} is not a PCI path such as 02/01")
        hops.append(numbers)
    return hops


def pci_device(hops: list[tuple[int, int]], sys: str = SYS) -> str | None:
    """The sysfs directory of the PCI device at the end of `hops`; None while it is not there."""
    bus, place = ROOT_BUS, f"{sys}/devices/pci{ROOT_BUS}"
    for index, (slot, function) in enumerate(hops):
        if index:
            below = _names(place + "/pci_bus")
            if len(below) != 1:
                return None
            bus = below[0]
        place = f"{place}/{bus}:{slot:02x}.{function:x}"
    return place if os.path.isdir(place) else None


def _find_pci(hops: list[tuple[int, int]], sys: str) -> str | None:
    place = pci_device(hops, sys)
    if place is None:
        return None
    for name in _names(place):
        if name.startswith("virtio"):
            return _device_node(f"{place}/{name}/block")
    return None


def _device_node(directory: str) -> str | None:
    """/dev path of the one disk whose sysfs entry lies in `directory`."""
    for name in _names(directory):
        if _is_block("/dev/" + name):
            return "/dev/" + name
    return None


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


# --- SCSI -------------------------------------------------------------------------------------------------


def _scan_scsi(target: str, lun: str, sys: str) -> None:
    """Have every host adapter look for the disk: the kernel does not by itself where scsi_mod.scan=none."""
    for host in _names(f"{sys}/class/scsi_host"):
        try:
            with open(f"{sys}/class/scsi_host/{host}/scan", "w") as file:
                file.write(f"0 {target} {lun}")
        except OSError:
            pass  # an adapter without such an address; the wait says what is missing


def _find_scsi(target: str, lun: str, sys: str) -> str | None:
    for name in _names(f"{sys}/bus/scsi/devices"):
        if name.endswith(f":{target}:{lun}") and name.count(":") == 3:
            found = _device_node(f"{sys}/bus/scsi/devices/{name}/block")
            if found is not None:
                return found
    return None
