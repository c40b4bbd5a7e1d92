"""Reading an OCI layout on disk: tag -> manifest -> config, every blob checked against its digest.

Owns: that walk. Must not know: skopeo, the cache. Called by store.py, on users' layouts (to find what is in
the cache already) and on those that skopeo wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import Any

from shim.image.errors import ImageNotFound, NotAnImage

MAX_BLOB = 8 * 1024 * 1024  # of JSON; registries stop at 4 MiB
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
REF_NAME = "org.opencontainers.image.ref.name"
STEP = "read OCI layout"


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest. `digest`: its own; `layers`: their digests; `config`: the config's digest."""

    digest: str
    config: str
    layers: tuple[str, ...]


def choose(directory: str, tag: str) -> dict[str, Any]:
    """The entry of `index.json` for `tag`; for "" the only one, or `latest`.

    Raises ImageNotFound (no such directory or tag; names those there are), NotAnImage.
    """
    entries = _index(directory)
    named = {entry.get("annotations", {}).get(REF_NAME, ""): entry for entry in entries}
    if tag in named and tag:
        return named[tag]
    if not tag and len(entries) == 1:
        return entries[0]
    if not tag and "latest" in named:
        return named["latest"]
    known = ", ".join(sorted(name for name in named if name)) or "none"
    missing = f"there is no image {tag!r} in it" if tag else "it has several images"
    raise ImageNotFound(missing, step=STEP, object=directory, hint=f"tags: {known}")


def _index(directory: str) -> list[dict[str, Any]]:
    if not os.path.isdir(directory):
        raise ImageNotFound("there is no such directory", step=STEP, object=directory)
    try:
        with open(os.path.join(directory, "index.json"), "rb") as file:
            index = json.loads(file.read(MAX_BLOB))
        entries = [entry for entry in index["manifests"] if DIGEST.fullmatch(entry["digest"])]
    except FileNotFoundError:
        raise NotAnImage("it has no index.json", step=STEP, object=directory) from None
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise NotAnImage(f"its index.json cannot be used: {exc}", step=STEP, object=directory) from exc
    if not entries:
        raise NotAnImage("it has no images", step=STEP, object=directory)
    return entries


def manifest(directory: str, digest: str, name: str) -> Manifest:
    """Read an image manifest (not a list of manifests). `name` is for messages. Raises NotAnImage."""
    try:
        document = json.loads(blob(directory, digest, name))
        layers = tuple(layer["digest"] for layer in document["layers"])
        config = document["config"]["digest"]
    except (ValueError, TypeError, KeyError) as exc:
        raise NotAnImage(f"its manifest cannot be used: {exc}", step=STEP, object=name) from exc
    return Manifest(digest, config, layers)


def blob(directory: str, digest: str, name: str) -> bytes:
    """A small blob's content. Raises NotAnImage if it is missing, large, or not what its digest says."""
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise NotAnImage(f"{digest!r} is no digest", step=STEP, object=name)
    path = os.path.join(directory, "blobs", "sha256", digest.removeprefix("sha256:"))
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BLOB + 1)
    except OSError as exc:
        raise NotAnImage(f"blob {digest}: {exc.strerror}", step=STEP, object=name) from exc
    if len(data) > MAX_BLOB or hashlib.sha256(data).hexdigest() != digest.removeprefix("sha256:"):
        raise NotAnImage(f"blob {digest} is damaged", step=STEP, object=name)
    return data
