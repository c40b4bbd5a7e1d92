"""A pod's plan, with what only the host knows: its size, the pod's shm and resolv.conf.

Owns: where these are looked at. Must not know: how the plan is carried out. Called by builder.py and ahead.py.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shim.oci import mounts
from shim.sandbox import hostfacts, ownfiles
from shim.sandbox import plan as planning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shim.config import Config
    from shim.oci.spec import Spec
    from shim.sandbox.rootfs import RootfsMount


def of_pod(
    config: Config,
    spec: Spec,
    bundle: str,
    sandbox_id: str,
    namespace: str,
    rootfs: Sequence[RootfsMount] | None = None,
) -> planning.SandboxPlan:
    """The plan for the pod whose first container has this spec and bundle (host path). Raises HakoError.

    `rootfs`: what Create says is to be mounted as the container's root; None before Create.
    """
    plans = mounts.plan(spec, bundle)
    sources = {(spec.mounts or ())[plan.at].destination: plan for plan in plans if plan.source}
    shm = next((plan.source for plan in plans if plan.fate == mounts.SHM), "")
    resolv_conf = sources.get("/etc/resolv.conf")
    return planning.plan(
        spec,
        sandbox_id,
        namespace,
        config.hypervisor,
        hostfacts.limits(),
        shm_size=_filesystem_size(shm),
        resolv_conf=_text_of(resolv_conf.source) if resolv_conf else "",
        own_files=ownfiles.is_alone(spec.annotations or {}) and ownfiles.are_own(spec, bundle, rootfs),
    )


def _filesystem_size(path: str) -> int:
    """Bytes of the tmpfs at a host path; 0 if it is none."""
    try:
        found = os.statvfs(path) if path else None
    except OSError:
        return 0
    return found.f_frsize * found.f_blocks if found and os.path.ismount(path) else 0


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(65536)
    except OSError:
        return ""
