"""umoci: an image of an OCI layout into a directory.

Owns: its call and what counts as an image that can be unpacked. Must not know: the cache. Called by store.py.
"""

from __future__ import annotations

import os

from shim import process
from shim.image.errors import EmptyImage, ImageError, NotAnImage, WrongArchitecture
from shim.image.imageconfig import ImageDescription
from shim.image.layout import Manifest
from shim.image.platform import architecture
from shim.image.skopeo import last_words

STEP = "unpack image (umoci)"


def check(manifest: Manifest, image: ImageDescription, name: str) -> None:
    """Refuse an image that has no files or is for another machine. Raises EmptyImage, NotAnImage,
    WrongArchitecture.

    A layerless image must never become an (empty) root filesystem: CVE-2026-24054.
    """
    step = "check image"
    if not manifest.layers or not image.diff_ids:
        raise EmptyImage("it has no layers", step=step, object=name)
    if len(manifest.layers) != len(image.diff_ids):
        counts = f"{len(manifest.layers)} layers, but its config names {len(image.diff_ids)}"
        raise NotAnImage(f"it has {counts}", step=step, object=name)
    if (image.os, image.architecture) != ("linux", architecture()):
        made_for = f"{image.os or '?'}/{image.architecture or '?'}"
        raise WrongArchitecture(
            f"it is for {made_for}, this machine is linux/{architecture()}", step=step, object=name
        )


def unpack(layout: str, tag: str, rootfs: str, name: str, *, timeout: float, umoci: str = "umoci") -> None:
    """Unpack `tag` of the OCI layout into the new directory `rootfs`; umoci checks every layer's digest.

    Raises NotAnImage (a damaged layer), EmptyImage (no files in the layers), ImageError. `rootfs` may be
    there in part then.
    """
    argv = [umoci, "raw", "unpack", "--image", f"{layout}:{tag}", rootfs]
    try:
        process.run(argv, timeout, confine=process.Confinement())
    except process.CommandFailed as failed:
        raise _meaning(failed, name) from failed
    if not os.listdir(rootfs):
        raise EmptyImage("its layers have no files", step=STEP, object=name)


def _meaning(failed: process.CommandFailed, name: str) -> ImageError:
    if failed.status == 127:
        return ImageError("there is no such program", step=STEP, object=name, hint="install umoci")
    said = last_words(failed.stderr).lstrip("\N{VECTOR OR CROSS PRODUCT} ") or failed.message
    if "no space left" in said or failed.status is None or failed.status < 0:
        return ImageError(said, step=STEP, object=name)
    return NotAnImage(said, step=STEP, object=name)
