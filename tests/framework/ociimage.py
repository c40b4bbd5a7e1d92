"""A busybox image as an OCI archive, made by hand: no registry, no tool, always the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

BUSYBOX = Path("/bin/busybox")
# fmt: off
APPLETS = [
    "sh", "ash", "cat", "echo", "sleep", "ls", "ps", "id", "true", "false", "env", "hostname", "mount",
    "umount", "stat", "dd", "head", "tail", "wc", "grep", "sed", "awk", "kill", "mkdir", "rm", "touch",
    "date", "uname", "test", "seq", "yes", "stty", "tty", "free", "df", "ip", "nc", "wget", "httpd",
    "find", "sort", "tr", "cut", "md5sum", "sha256sum", "printf", "readlink", "chmod", "chown", "ln",
    "cp", "mv", "sync", "nproc", "top", "nslookup", "ping", "getopt", "expr", "xargs", "usleep",
    "ulimit",
]
# fmt: on
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
REFERENCE = "docker.io/library/hako-busybox:latest"


def layer() -> bytes:
    """An uncompressed layer: static busybox, its applets, the files that programs look for."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "var", "usr", "usr/bin"):
            _directory(tar, name, 0o1777 if name == "tmp" else 0o755)
        _file(tar, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        for applet in sorted(set(APPLETS)):
            _link(tar, f"bin/{applet}", "busybox")
        _file(tar, "etc/passwd", PASSWD, 0o644)
        _file(tar, "etc/group", b"root:x:0:\nnobody:x:65534:\n", 0o644)
        _file(tar, "etc/os-release", b"ID=hako-busybox\n", 0o644)
    return stream.getvalue()


def archive(path: Path, reference: str = REFERENCE, **config: Any) -> Path:
    """Write the image as an OCI archive to `path`; `config` overrides parts of the image's config."""
    data = layer()
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin:/usr/bin"], "Cmd": ["/bin/sh"], **config},
        "rootfs": {"type": "layers", "diff_ids": [_digest(data)]},
    }
    blobs = [data, json.dumps(image).encode()]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _descriptor("application/vnd.oci.image.config.v1+json", blobs[1]),
        "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", data)],
    }
    blobs.append(json.dumps(manifest).encode())
    entry = _descriptor("application/vnd.oci.image.manifest.v1+json", blobs[2])
    names = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference}
    index = {"schemaVersion": 2, "manifests": [{**entry, "annotations": names}]}
    with tarfile.open(path, "w") as tar:
        _file(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}', 0o644)
        _file(tar, "index.json", json.dumps(index).encode(), 0o644)
        for blob in blobs:
            _file(tar, f"blobs/sha256/{_digest(blob).removeprefix('sha256:')}", blob, 0o644)
    return path


def unpack(directory: Path) -> Path:
    """The layer as a directory, for bundles made without an engine."""
    with tarfile.open(fileobj=io.BytesIO(layer())) as tar:
        # Debian 12's Python 3.11.2 has no filters yet; where there are some, the layer is our own.
        trusted: Any = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
        tar.extractall(directory, **trusted)
    return directory


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _directory(tar: tarfile.TarFile, name: str, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, mode
    tar.addfile(info)


def _file(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def _link(tar: tarfile.TarFile, name: str, target: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
    tar.addfile(info)
