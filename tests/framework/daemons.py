"""The two kinds of virtiofsd, for tests that must hold with both."""

from __future__ import annotations

import os

import pytest

from shim import tools
from shim.share import virtiofsd

KINDS = ("c", "rust")
C_DAEMON = "/usr/lib/qemu/virtiofsd"
_REMEDY = {
    "c": "only Debian 12 has it, in qemu-system-common",
    "rust": "python -m shim.tools --ensure virtiofsd-rust",
}


def find(kind: str) -> str | None:
    """The daemon's path on this machine."""
    if kind == "c":
        # Debian 13 has a link to the Rust one there.
        return C_DAEMON if os.access(C_DAEMON, os.X_OK) and virtiofsd.kind_of(C_DAEMON) == "c" else None
    places = tuple(place for place in virtiofsd.PLACES if place != C_DAEMON)
    return tools.find("virtiofsd-rust", places)


def need(kind: str) -> str:
    """Its path, or a skip that says how to get it."""
    return find(kind) or pytest.skip(f"no {kind} virtiofsd: {_REMEDY[kind]}")
