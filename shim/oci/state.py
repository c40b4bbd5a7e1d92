"""The state of a container as OCI's JSON: what hooks read on stdin and `hako state` prints. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping


def state_json(
    *,
    version: str,
    container_id: str,
    status: str,
    pid: int,
    bundle: str,
    annotations: Mapping[str, str] | None,
) -> bytes:
    """runtime-spec's State.

    `pid`: host pid of the container's stub, 0 if there is none; `bundle`: host path.
    """
    state: dict[str, object] = {
        "ociVersion": version,
        "id": container_id,
        "status": status,
        "pid": pid,
        "bundle": bundle,
    }
    if annotations:
        state["annotations"] = dict(annotations)
    return json.dumps(state).encode()
