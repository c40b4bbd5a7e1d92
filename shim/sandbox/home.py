"""HOME of a container's processes, where their environment does not say it: from the container's own passwd, as runc does.

Owns: when that can be read on the host: the guest would need six round trips through virtio-fs for it (3 - 10 ms emulated).
Must not know: passwd's grammar (shim/runspec/users.py), which opens nothing outside the root and nothing but a regular file,
also when a guest changes the root meanwhile. Called by container.py. Whatever is not plain is left to the guest's agent,
which looks HOME up wherever it is missing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shim.runspec import users

if TYPE_CHECKING:
    from agent.api import oci_pb2
    from shim.oci.spec import Spec

_HIDING = ("/", "/etc", "/etc/passwd")


def complete(process: oci_pb2.Process, spec: Spec, rootfs: str) -> None:
    """Add HOME to the guest's `process` if it is missing there; `rootfs`: host path of the guest's root, "" for none."""
    if not rootfs or any(entry.startswith("HOME=") for entry in process.Env) or process.User.Username or spec.hooks is not None:
        return
    if any(os.path.normpath(mount.destination) in _HIDING for mount in spec.mounts or ()):
        return
    try:
        home = users.home_of(rootfs, process.User.UID)
        process.Env.append(f"HOME={home}")
    except (users.UserError, OSError, ValueError):  # ValueError: not what a string of a message can be
        pass
