"""What becomes of a container's volumes where no file system is shared. Pure.

Owns: the decision and the words of a refusal. Must not know: how a volume is copied or plugged. Called by disks.py.

    plugged    a mount of a file system on a block device or in an image file (type ext4, erofs ...)
    copied     a read-only bind, if it is small; and the few files that engines bind writable and nobody writes to
    in memory  Kubernetes' emptyDir: it is the pod's own, and empty
    refused    every other bind that is writable: what the container writes would not reach the host
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shim.errors import Unsupported
from shim.oci.mounts import SHARE, MountPlan
from shim.oci.spec import Mount, Spec
from shim.sandbox.layers import DISK_TYPES, NOT_FOR_THE_GUEST, Device

# Made by the engine for this container; kubelet reads /dev/termination-log only for a message about the end.
ENGINE_FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log", "/run/.containerenv")
KUBELET_EMPTY_DIR = "/volumes/kubernetes.io~empty-dir/"
EMPTY_DIRS = ".empty-dirs"  # beside the containers' directories in the guest; no id begins with a dot
OTHER_WAY = '[share] shared_fs = "virtio-fs" allows it'


class Volume(NamedTuple):
    """Mount `at` of the spec. One of `device` (plugged), `empty` (its name), or `source` (host path, copied)."""

    at: int
    destination: str
    source: str = ""
    device: Device | None = None
    empty: str = ""


def plan(spec: Spec, plans: Sequence[MountPlan]) -> list[Volume]:
    """The volumes that the guest has not by itself. Raises Unsupported for one that cannot be had so."""
    found = (_one((spec.mounts or ())[each.at], each) for each in plans)
    return [volume for volume in found if volume is not None]


def refused(volume: Volume, reason: str, remedy: str) -> Unsupported:
    """The error for a volume that cannot be had."""
    return Unsupported(reason, step=f"volume {volume.destination}", object=volume.source, hint=f"{remedy}; {OTHER_WAY}")


def _one(mount: Mount, plan: MountPlan) -> Volume | None:
    options = mount.options or ()
    if plan.fate != SHARE:
        if mount.type not in DISK_TYPES or not (mount.source or "").startswith("/"):
            return None
        rest = tuple(option for option in options if option not in NOT_FOR_THE_GUEST)
        return Volume(plan.at, mount.destination, device=Device(mount.source or "", mount.type, rest))
    volume = Volume(plan.at, mount.destination, plan.source)
    name = plan.source.partition(KUBELET_EMPTY_DIR)[2]
    if name and "/" not in name:
        return volume._replace(empty=name)
    if not plan.readonly and mount.destination not in ENGINE_FILES:
        raise refused(volume, "it is writable, and what is written would not reach the host", "mount it read-only")
    return volume
