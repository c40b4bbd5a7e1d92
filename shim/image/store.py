"""From a reference to an unpacked image: everything is done once and kept in the cache.

Owns: what is in the cache under which name, and the order of the steps. Must not know: containers, the OCI
spec. Called by the CLI.

    CACHE/oci/refs/KEY.json       which image a reference named: KEY is a hash of what identifies its content
    CACHE/oci/images/HEX/         rootfs/ and config.json; HEX is the config's digest (Docker's image id)
    CACHE/oci/tmp, locks          workspace.py
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Literal

from shim.image import layout, skopeo, unpack, workspace
from shim.image.errors import ImageNotFound
from shim.image.imageconfig import ImageConfig, describe
from shim.image.reference import DOCKER_HUB, Reference, parse
from shim.image.skopeo import Progress

DEFAULT_TIMEOUT = 600.0
TAG = "image"  # in the layouts that skopeo writes for us

Pull = Literal["missing", "always", "never"]


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked image. `rootfs`: host path, shared by all containers, never to be written to.

    `id`: the config's digest; `digest`: the manifest's in our cache; `reference`: as the user gave it.
    """

    reference: str
    id: str
    digest: str
    rootfs: str
    config: ImageConfig


def resolve(
    text: str,
    *,
    pull: Pull = "missing",
    progress: Progress | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    default_registry: str = DOCKER_HUB,
    skopeo_program: str = "skopeo",
    umoci_program: str = "umoci",
) -> Image:
    """Find, fetch and unpack the image that `text` names (grammar: reference.py).

    `pull`: "missing" asks the registry only for what is not cached, "never" not at all, "always" even so;
    local layouts and archives are looked at every time. `timeout` (seconds) holds for fetching and for
    unpacking. Raises ImageError and its kinds (errors.py), Timeout; nothing is left in the cache then.
    """
    tools = _Tools(progress or (lambda step, detail: None), timeout, skopeo_program, umoci_program)
    reference = parse(text, default_registry)
    key = _key(reference)
    if pull != "always" and (image := _cached(reference, key)):
        return image
    if pull == "never" and not reference.local:
        raise ImageNotFound("it is not in the cache and must not be fetched", step="find image", object=text)
    with workspace.locked(f"ref-{key}"):
        if pull != "always" and (image := _cached(reference, key)):
            return image  # somebody else has just fetched it
        return _fetch(reference, key, tools)


@dataclass(frozen=True, slots=True)
class _Tools:
    progress: Progress
    timeout: float
    skopeo: str
    umoci: str


def _key(reference: Reference) -> str:
    """A name for the content that the reference means now. Raises ImageNotFound, NotAnImage."""
    identity: list[str | int] = [reference.canonical]
    if reference.transport == "oci":
        identity = ["oci", layout.choose(reference.location, reference.tag)["digest"]]
    elif reference.local:
        identity += _file_identity(reference)
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _file_identity(reference: Reference) -> list[int]:
    """Changes whenever the file is written or replaced."""
    try:
        found = os.stat(reference.location)
    except OSError as exc:
        raise ImageNotFound(exc.strerror or str(exc), step="open image", object=reference.location) from exc
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _cached(reference: Reference, key: str) -> Image | None:
    """The image that was unpacked for this key, if it is still there."""
    try:
        with open(_ref_file(key), encoding="utf-8") as file:
            entry = json.load(file)
        return _load(reference, entry["id"], entry["digest"])
    except (OSError, ValueError, KeyError):
        return None  # a cache may be damaged or emptied at any time; it is filled again


def _load(reference: Reference, id: str, digest: str) -> Image:
    directory = _image_directory(id)
    with open(os.path.join(directory, "config.json"), "rb") as file:
        image = describe(file.read(), reference.text)
    rootfs = os.path.join(directory, "rootfs")
    os.stat(rootfs)
    return Image(reference.text, id, digest, rootfs, image.config)


def _fetch(reference: Reference, key: str, tools: _Tools) -> Image:
    with workspace.temporary() as work:
        directory = os.path.join(work, "layout")
        tools.progress("pull", reference.text)
        skopeo.copy(
            reference, directory, TAG, timeout=tools.timeout, progress=tools.progress, skopeo=tools.skopeo
        )
        manifest = layout.manifest(directory, layout.choose(directory, TAG)["digest"], reference.text)
        blob = layout.blob(directory, manifest.config, reference.text)
        unpack.check(manifest, describe(blob, reference.text), reference.text)
        with workspace.locked(f"image-{_hex(manifest.config)}"):
            if not os.path.isdir(_image_directory(manifest.config)):
                _unpack(work, manifest.config, blob, reference, tools)
    _write_ref(key, reference, manifest)
    return _load(reference, manifest.config, manifest.digest)


def _unpack(work: str, id: str, config: bytes, reference: Reference, tools: _Tools) -> None:
    """Unpack beside and move in place when all is well."""
    tools.progress("unpack", reference.text)
    image = os.path.join(work, "image")
    os.mkdir(image, 0o700)
    unpack.unpack(
        os.path.join(work, "layout"),
        TAG,
        os.path.join(image, "rootfs"),
        reference.text,
        timeout=tools.timeout,
        umoci=tools.umoci,
    )
    with open(os.path.join(image, "config.json"), "wb") as file:
        file.write(config)
    workspace.directory("images")
    workspace.publish(image, _image_directory(id))


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _image_directory(id: str) -> str:
    return os.path.join(workspace.root(), "images", _hex(id))


def _ref_file(key: str) -> str:
    return os.path.join(workspace.root(), "refs", f"{key}.json")


def _write_ref(key: str, reference: Reference, manifest: layout.Manifest) -> None:
    workspace.directory("refs")
    temporary = f"{_ref_file(key)}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"reference": reference.canonical, "id": manifest.config, "digest": manifest.digest}, file)
    os.rename(temporary, _ref_file(key))
