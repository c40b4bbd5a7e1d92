"""What becomes of each mount of a config.json when the container runs in a VM. Pure.

Owns: the decision, by type, source and destination. Must not know: how something gets into the share
(share/tree.py), nor the guest's paths. Called by sandbox/container.py before the translation, because what
is shared has to be in the share before the guest can be told its path.

    KEEP    the guest makes it itself (proc, tmpfs, devpts ...) or has it (binds of /dev/x, /proc/x, /sys/x)
    SHARE   a bind of a host file or directory: it goes through virtio-fs
    SHM     the pod's /dev/shm, one tmpfs in the guest for all containers of the pod
"""

from __future__ import annotations

import os
from typing import NamedTuple

from shim.oci.spec import Mount, Spec

KEEP, SHARE, SHM = "keep", "share", "shm"

# Host trees that a container can only mean in its own machine: binding the host's would show it another
# kernel.
GUEST_TREES = ("/dev", "/proc", "/sys")
_PROPAGATION = {
    "rprivate": "private",
    "private": "private",
    "rslave": "slave",
    "slave": "slave",
    "rshared": "shared",
    "shared": "shared",
}


class MountPlan(NamedTuple):
    """Fate of `spec.mounts[at]`. `source`: host path to share (SHARE) or whose size counts (SHM)."""

    at: int
    fate: str
    source: str = ""
    readonly: bool = False
    propagation: str = "private"


def plan(spec: Spec, bundle: str) -> list[MountPlan]:
    """The fate of every mount, in the spec's order. `bundle`: host path that relative sources start from."""
    return [_plan_one(index, mount, bundle) for index, mount in enumerate(spec.mounts or ())]


def is_bind(mount: Mount) -> bool:
    """Whether the mount is a bind, by its type or by its options (runc takes either)."""
    return mount.type == "bind" or any(option in ("bind", "rbind") for option in mount.options or ())


def _plan_one(index: int, mount: Mount, bundle: str) -> MountPlan:
    if not is_bind(mount) or not mount.source:
        return MountPlan(index, KEEP)
    source = os.path.normpath(os.path.join(bundle, mount.source))
    if os.path.normpath(mount.destination) == "/dev/shm":
        return MountPlan(index, SHM, source)
    if any(source == tree or source.startswith(tree + "/") for tree in GUEST_TREES):
        return MountPlan(index, KEEP)
    options = mount.options or ()
    modes = [_PROPAGATION[option] for option in options if option in _PROPAGATION]
    readonly = "ro" in options or "rro" in options
    return MountPlan(index, SHARE, source, readonly, modes[-1] if modes else "private")
