"""What can be wrong with an image; each error names the step and the image.

ImageError                  a tool failed, the cache is unusable
├── InvalidReference        the name is not one
├── ImageNotFound           no such file, directory, tag or repository
├── NotAnImage              something is there that is no image, or a damaged one
│   └── EmptyImage          an image without layers or files (CVE-2026-24054: never make a rootfs of it)
├── WrongArchitecture       made for another machine
└── RegistryError           the registry cannot be reached, or refuses
"""

from __future__ import annotations

from shim.errors import FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE, HakoError


class ImageError(HakoError):
    """`object` is the reference as the user gave it, or the file."""


class InvalidReference(ImageError):
    """The name cannot be an image's."""

    code = INVALID_ARGUMENT


class ImageNotFound(ImageError):
    """There is nothing of that name."""

    code = NOT_FOUND


class NotAnImage(ImageError):
    """What is there is not an image, or is damaged."""

    code = INVALID_ARGUMENT


class EmptyImage(NotAnImage):
    """The image holds no files."""


class WrongArchitecture(ImageError):
    """The image is for another kind of machine."""

    code = FAILED_PRECONDITION


class RegistryError(ImageError):
    """The registry did not answer, or not to us."""

    code = UNAVAILABLE
