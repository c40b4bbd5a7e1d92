"""Whether a container's files are its own: nobody writes to them but itself, so that its guest may keep what it has read.

Owns: that question. Pure. Must not know: what a guest may keep (shim/share/virtiofsd.py). Called by hostplan.py for a pod's first
container and by sandbox.py for those that join it.

A root filesystem is its own if it was mounted for it: the layers of an overlay may not be changed while it is mounted (Linux,
filesystems/overlayfs.rst), and a disk is mounted once. A directory that was there before (--rootfs, Docker's) is somebody's. Of
what is mounted into it, only what lies in its bundle is its own, such as the /etc/hosts that `hako run` writes there once.

Nor does the container itself bring anything old into its guest's cache: a file that was open when it was copied up is read from
the copy (Linux, fs/overlayfs/file.c, ovl_real_fdget_meta).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from shim import paths
from shim.oci import grouping, mounts
from shim.oci.spec import Spec
from shim.sandbox.rootfs import RootfsMount

OWN_TYPES = ("overlay", "ext4", "xfs", "btrfs", "erofs")


def are_own(spec: Spec, bundle: str, rootfs: Sequence[RootfsMount] | None) -> bool:
    """For a container with this bundle (host path). `rootfs`: what is mounted as its root, None while nobody has said it yet."""
    if not _is_own_root(spec, rootfs):
        return False
    shared = [plan.source for plan in mounts.plan(spec, bundle) if plan.fate == mounts.SHARE]
    return all(source.startswith(os.path.join(os.path.normpath(bundle), "")) for source in shared)


def is_alone(annotations: Mapping[str, str]) -> bool:
    """Whether no other container is to be expected in its pod: no engine has named one."""
    return grouping.role_of(annotations) == grouping.SINGLE and not grouping.sandbox_of(annotations, "")


def _is_own_root(spec: Spec, rootfs: Sequence[RootfsMount] | None) -> bool:
    path = spec.root.path if spec.root is not None else ""
    if os.path.isabs(path) and not rootfs:
        return paths.is_overlay(path)
    return rootfs is None or (bool(rootfs) and all(mounted.type in OWN_TYPES for mounted in rootfs))
