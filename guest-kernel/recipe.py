"""How the guest kernel is configured and compiled, in a scratch directory: everything that shapes the result.

kernel.py makes this file part of the cache's key, so a change here compiles anew. Knows no cache and no guest.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import fragments
from commands import BuildError, require, run

TOOLS = {"make": "make", "gcc": "gcc", "flex": "flex", "bison": "bison", "bc": "bc", "ld": "binutils",
         "strip": "binutils", "xz": "xz-utils", "tar": "tar", "perl": "perl"}  # fmt: skip
LIBRARIES = {Path("/usr/include/gelf.h"): "libelf-dev"}
# The build's user, host and time must not be in the result: same inputs, same bytes.
STAMP = {"KBUILD_BUILD_TIMESTAMP": "@0", "KBUILD_BUILD_USER": "hako", "KBUILD_BUILD_HOST": "hako",
         "KBUILD_BUILD_VERSION": "1"}  # fmt: skip


def kernel_version(tree: Path) -> fragments.Version:
    """(major, minor) from the top Makefile of a kernel tree."""
    text = (tree / "Makefile").read_text()
    major, minor = (re.search(rf"^{name} = (\d+)$", text, re.MULTILINE) for name in ("VERSION", "PATCHLEVEL"))
    if not major or not minor:
        raise BuildError(f"{tree / 'Makefile'} states no kernel version")
    return int(major[1]), int(minor[1])


def configure(tree: Path, objects: Path, fragment_dir: Path) -> None:
    """Writes `objects/.config`; BuildError names every asked option that the kernel's configuration dropped."""
    asked = fragments.select(fragments.read(fragment_dir), kernel_version(tree))
    wanted = objects / "asked.config"
    wanted.write_text(fragments.render(asked))
    # allnoconfig takes our values first, answers `no` to everything else and resolves dependencies.
    run(["make", "-C", tree, f"O={objects}", f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig"], env=STAMP)
    dropped = fragments.missing(asked, (objects / ".config").read_text())
    if dropped:
        raise BuildError("the kernel's configuration dropped: " + ", ".join(dropped))


def compile_kernel(tree: Path, objects: Path, jobs: int) -> None:
    """Compiles `objects/vmlinux`; takes 4 minutes on two cores, at low priority."""
    run(["make", "-C", tree, f"O={objects}", f"-j{jobs}", "vmlinux"], env=STAMP, timeout=7200, nice=10)


def build(source: Path, fragment_dir: Path, scratch_parent: Path, out: Path, jobs: int) -> None:
    """Leaves vmlinux, config and version in `out`; unpacks and compiles below `scratch_parent` (2 GiB, gone after)."""
    require(TOOLS)
    for header, package in LIBRARIES.items():
        if not header.exists():
            raise BuildError(f"missing {header}; apt-get install {package}")
    with tempfile.TemporaryDirectory(prefix="hako-kernel-", dir=scratch_parent) as scratch:
        run(["tar", "-xf", source, "-C", scratch], timeout=1200)
        tree = next(path for path in Path(scratch).iterdir() if (path / "Kbuild").exists())
        objects = Path(scratch) / "objects"
        objects.mkdir()
        configure(tree, objects, fragment_dir)
        compile_kernel(tree, objects, jobs)
        collect(objects, out)


def collect(objects: Path, out: Path) -> None:
    """Strips vmlinux into `out`, with its configuration and its release (what uname -r says) beside it."""
    run(["strip", "--strip-all", "-o", out / "vmlinux", objects / "vmlinux"])
    (out / "config").write_bytes((objects / ".config").read_bytes())
    (out / "version").write_text((objects / "include/config/kernel.release").read_text().strip() + "\n")
