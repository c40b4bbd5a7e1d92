"""Images for tests, made on the spot: Debian's static busybox, and broken ones."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from shim.image import busybox


def make_busybox(directory: Path, tag: str = "latest", **config: object) -> str:
    """A busybox image in an OCI layout; its reference. `config`: fields of the image's config, such as
    Env=[...].
    """
    return busybox.make(str(directory), tag, config=config)


def tar(files: dict[str, str], links: dict[str, str] | None = None) -> bytes:
    """A layer with these files (name -> text) and symbolic links (name -> target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o755
            archive.addfile(entry, io.BytesIO(text.encode()))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


def make_image(
    directory: Path, layers: list[bytes], tag: str = "latest", arch: str = "", **config: object
) -> str:
    """An image of these layers in an OCI layout; its reference."""
    return busybox.write_image(str(directory), tag, layers, {"Cmd": ["sh"], **config}, arch)
