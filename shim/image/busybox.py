"""A small image made of the host's own static busybox: something to run without a registry.

Owns: its files and its OCI layout. Must not know: the cache, umoci. Called by `make run` and by tests. The
same busybox gives the same bytes: everything has the epoch as its date, names are sorted, the layer is not
compressed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from typing import Any

from shim import process
from shim.image.errors import ImageNotFound
from shim.image.platform import architecture

BUSYBOX = "/bin/busybox"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

DIRECTORIES = {
    "bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o755, "root": 0o700, "run": 0o755,
    "sbin": 0o755, "sys": 0o755, "tmp": 0o1777, "usr": 0o755, "usr/bin": 0o755, "usr/sbin": 0o755,
    "var": 0o755, "var/tmp": 0o1777,
}  # fmt: skip

FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
    "www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
    "etc/group": "root:x:0:\ndaemon:x:1:\ntty:x:5:\nusers:x:100:www-data\nwww-data:x:33:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}


def make(
    directory: str, tag: str = "latest", *, busybox: str = BUSYBOX, config: dict[str, Any] | None = None
) -> str:
    """Write the image into the OCI layout `directory` (made if need be) and return its reference
    "oci:DIR:TAG".

    `config` is merged over the image's default config. Raises ImageNotFound if there is no busybox.
    """
    if not os.access(busybox, os.X_OK):
        raise ImageNotFound(
            "no such program", step="make image", object=busybox, hint="install busybox-static"
        )
    return write_image(directory, tag, [layer(busybox)], {**default_config(), **(config or {})})


def default_config() -> dict[str, Any]:
    """What the image says about how to run it."""
    return {"Env": [f"PATH={PATH}"], "Cmd": ["sh"], "WorkingDir": "/"}


def layer(busybox: str) -> bytes:
    """The one layer, as an uncompressed tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, mode in sorted(DIRECTORIES.items()):
            tar.addfile(_entry(name, tarfile.DIRTYPE, mode))
        with open(busybox, "rb") as file:
            _add_file(tar, "bin/busybox", file.read(), 0o755)
        for name, text in sorted(FILES.items()):
            _add_file(tar, name, text.encode(), 0o644)
        for link, target in sorted(links(applets(busybox)).items()):
            entry = _entry(link, tarfile.SYMTYPE, 0o777)
            entry.linkname = target
            tar.addfile(entry)
    return buffer.getvalue()


def applets(busybox: str) -> list[str]:
    """Names of the programs in it."""
    names = process.run([busybox, "--list"], 10).decode().split()
    return sorted(name for name in names if name != "busybox")


def links(names: list[str]) -> dict[str, str]:
    """All applets in /bin, and `env` where scripts look for it."""
    return {f"bin/{name}": "busybox" for name in names} | {"usr/bin/env": "/bin/busybox"}


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = kind, mode
    return entry


def _add_file(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = _entry(name, tarfile.REGTYPE, mode)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def write_image(directory: str, tag: str, layers: list[bytes], config: dict[str, Any], arch: str = "") -> str:
    """Write an image of these uncompressed layers into an OCI layout, replacing an older one of that tag.

    `config` is the "config" object of the image; `arch` as Go names it, the host's by default.
    """
    os.makedirs(os.path.join(directory, "blobs/sha256"), exist_ok=True)
    kind = "application/vnd.oci.image."
    image = {
        "architecture": arch or architecture(),
        "config": config,
        "created": "1970-01-01T00:00:00Z",
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "hako"} for _ in layers],
        "os": "linux",
        "rootfs": {
            "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers],
            "type": "layers",
        },
    }
    manifest = {
        "config": _blob(directory, _json(image), kind + "config.v1+json"),
        "layers": [_blob(directory, data, kind + "layer.v1.tar") for data in layers],
        "mediaType": kind + "manifest.v1+json",
        "schemaVersion": 2,
    }
    descriptor = _blob(directory, _json(manifest), kind + "manifest.v1+json")
    _add_to_index(directory, {**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}}, tag)
    return f"oci:{directory}:{tag}"


def _add_to_index(directory: str, descriptor: dict[str, Any], tag: str) -> None:
    path = os.path.join(directory, "index.json")
    others = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            others = json.load(file)["manifests"]
    others = [m for m in others if m.get("annotations", {}).get("org.opencontainers.image.ref.name") != tag]
    _write(os.path.join(directory, "oci-layout"), b'{"imageLayoutVersion":"1.0.0"}')
    _write(path, _json({"manifests": [*others, descriptor], "schemaVersion": 2}))


def _blob(directory: str, data: bytes, media_type: str) -> dict[str, Any]:
    """Write a blob and describe it."""
    digest = hashlib.sha256(data).hexdigest()
    _write(os.path.join(directory, "blobs/sha256", digest), data)
    return {"digest": f"sha256:{digest}", "mediaType": media_type, "size": len(data)}


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _write(path: str, data: bytes) -> None:
    temporary = path + ".new"
    with open(temporary, "wb") as file:
        file.write(data)
    os.rename(temporary, path)
