"""The machine that images have to be for, in Go's words. Pure; asks uname(2)."""

from __future__ import annotations

import os

# machine of uname(2) -> GOARCH, as in image configs (runtime/internal/sys; docker's containerd/platforms)
ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "i686": "386",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}


def architecture() -> str:
    """This machine's architecture as images name it; the kernel's name if it has no other."""
    machine = os.uname().machine
    return ARCHITECTURES.get(machine, machine)
