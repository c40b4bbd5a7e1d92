"""Which pod a container belongs to, by the annotations that engines write into config.json.

Owns: the names of those annotations. Must not know: what a sandbox is made of. Called by `start` and
`delete`, which read the annotations only, and by the task service, which has the whole spec. Imports `json`
when a file is read.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# In order of precedence; the first is containerd's own name for an explicit group.
GROUP = "io.containerd.runc.v2.group"
SANDBOX_ID = (
    "io.kubernetes.cri.sandbox-id",  # containerd
    "io.kubernetes.cri-o.SandboxID",  # CRI-O
    "io.kubernetes.sandbox.id",  # cri-dockerd
)
CONTAINER_TYPE = (
    ("io.kubernetes.cri.container-type", "sandbox", "container"),
    ("io.kubernetes.cri-o.ContainerType", "sandbox", "container"),
    ("io.kubernetes.docker.type", "podsandbox", "container"),
)

SINGLE, SANDBOX, CONTAINER = "single", "sandbox", "container"


def read_annotations(bundle: str) -> dict[str, str]:
    """The annotations in the bundle's config.json; none without the file (containerd's sandbox API)."""
    from shim.light import loads

    try:
        with open(os.path.join(bundle, "config.json"), "rb") as stream:
            spec = loads(stream.read())
    except FileNotFoundError:
        return {}
    found = spec.get("annotations") if isinstance(spec, dict) else None
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def sandbox_of(annotations: Mapping[str, str], container_id: str) -> str:
    """Id of the pod that the container belongs to; its own id when it is alone."""
    for key in (GROUP, *SANDBOX_ID):
        if annotations.get(key):
            return annotations[key]
    return container_id


def role_of(annotations: Mapping[str, str]) -> str:
    """SANDBOX for a pod's pause container, CONTAINER for one in a pod, SINGLE for one without a pod."""
    for key, sandbox, container in CONTAINER_TYPE:
        value = annotations.get(key)
        if value == sandbox:
            return SANDBOX
        if value == container:
            return CONTAINER
    return SINGLE
