"""The stacks that hako is measured on: a VMM with the daemon that shows it files.

Owns: which of them are here, where their programs are, how to get the ones that are not, which of them the rows are judged
on. Knows nothing of what is measured. Called by `lab` and by the report.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

from shim import tools
from shim.errors import HakoError
from shim.share import virtiofsd

NEWER = "QEMU 10"
"""QEMU 10 with the Rust virtiofsd, what Debian 13 has: the stack that the rows are judged on."""
QEMU = "/usr/bin/qemu-system-x86_64"
FETCHED = ("qemu10", "virtiofsd-rust")


class Stack(NamedTuple):
    """`qemu` and `virtiofsd` are host paths."""

    name: str
    qemu: str
    virtiofsd: str

    def described(self) -> str:
        """Versions, for people."""
        rust = virtiofsd.kind_of(self.virtiofsd) == "rust"
        daemon = f"Rust virtiofsd {version(self.virtiofsd)}" if rust else "C virtiofsd"
        return f"QEMU {version(self.qemu)}, {daemon}"


class Found(NamedTuple):
    """What is here; what is not, with how to get it."""

    stacks: list[Stack]
    missing: dict[str, str]


def on(name: str, stack: Stack | str) -> str:
    """What is measured as `name` on a stack."""
    return f"{name} [{stack.name if isinstance(stack, Stack) else stack}]"


def judged(names: Iterable[str]) -> str:
    """The stack whose values count, of those that have one: the newer where it was measured."""
    there = list(names)
    return NEWER if NEWER in there or not there else there[0]


def find(wanted: str = "") -> Found:
    """The distribution's own, and the newer one beside it; only those whose names have `wanted` in them, if any has.

    Raises NotFound if this host has not even the former.
    """
    found = every(stock(), fetch=wanted in NEWER)
    return found._replace(stacks=[stack for stack in found.stacks if wanted in stack.name] or found.stacks)


def every(own: Stack, *, fetch: bool) -> Found:
    """The host's own one; and the newer, which is looked for where it is to be fetched."""
    if own.name == NEWER:
        return Found([own], {"the stack of Debian 12": f"this host's own is {own.described()}: run the bench on a Debian 12"})
    if not fetch:
        return Found([own], {})
    try:
        return Found([own, fetched()], {})
    except HakoError as exc:
        how = f"python -m shim.tools --ensure {' '.join(FETCHED)}, which says: {exc}"
        return Found([own], {f"the stack {NEWER}": how})


def stock() -> Stack:
    """What the distribution installs."""
    daemon = next((path for path in virtiofsd.PLACES if os.access(path, os.X_OK)), "") or virtiofsd.find().path
    newer = int(version(QEMU).split(".")[0]) >= 10 and virtiofsd.kind_of(daemon) == "rust"
    return Stack(NEWER if newer else system(), QEMU, daemon)


def fetched() -> Stack:
    """QEMU 10 and the Rust virtiofsd in the cache, fetched if they are not there. Raises HakoError."""
    return Stack(NEWER, *(tools.ensure(name) for name in FETCHED))


def system() -> str:
    """The distribution and its version."""
    release = platform.freedesktop_os_release()
    return f"{release.get('ID', 'linux').capitalize()} {release.get('VERSION_ID', '')}".strip()


def version(program: str) -> str:
    """Of a QEMU, such as 10.0.2, or of a Rust virtiofsd."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    found = re.search(r"(?:version|virtiofsd) ([0-9.]+)", said)
    return found[1] if found else "0"
