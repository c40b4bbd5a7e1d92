#!/usr/bin/python3
"""Builds the guest image: the distribution's CPython, the agent and nothing else; the same inputs give the same bytes.

Usage: image.py [--floor | --initramfs] [--agent DIR] [--site DIR] [--out DIR]

    (nothing)     image.erofs for our kernel: a read-only disk (root=/dev/vda rootfstype=erofs)
    --initramfs   initrd.cpio for the distribution's kernel, with the modules of that kernel (see stock.py)
    --floor       image.erofs with busybox and a trivial init: what a bare boot costs, for benchmarks

Owns what goes where in the guest. Knows no kernel configuration and no VMM. Called by build.py, the benchmarks, by hand.
Results are cached under <cache>/image/<key>/.
"""
from __future__ import annotations

import argparse
import sys
import sysconfig
import tempfile
from pathlib import Path

import artifacts
import closure
import elf
import stock
from commands import BuildError, require, run
from tree import CONSOLE, NULL, Tree

HERE = Path(__file__).resolve().parent
AGENT = HERE.parent / "agent"
BUSYBOX = Path("/usr/bin/busybox")
SIZE_LIMIT = 30 << 20
# Fixed, so that two builds are equal; nothing mounts by it.
UUID = "68616b6f-0000-4000-8000-000000000001"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = "ld-linux-x86-64.so.2"
# Directories that exist only to be mounted on. /run, /tmp and what is below them are the agent's tmpfs.
MOUNT_POINTS = {"dev": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, "tmp": 0o1777, "root": 0o700, "mnt": 0o755,
                "var/tmp": 0o1777, "etc": 0o755, "etc/hako": 0o755}  # fmt: skip
# The merged /usr of the distribution, which the interpreter's and the loader's built-in paths rely on.
LINKS = {"bin": "usr/bin", "sbin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "usr/sbin": "bin"}
FLOOR_INIT = b"""#!/bin/busybox sh
echo hako-floor: ready
while read line; do /bin/true; echo ok; done
"""


def skeleton() -> Tree:
    """Mount points and the links of a merged /usr."""
    tree = Tree()
    for path, mode in MOUNT_POINTS.items():
        tree.directory(path, mode)
    for path in ("usr/bin", "usr/lib64", LIBRARIES):
        tree.directory(path)
    for path, target in LINKS.items():
        tree.link(path, target)
    return tree


def guest_tree(agent: Path, site: Path) -> Tree:
    """The tree of the guest image; `agent` is the package directory, `site` the virtual environment's site-packages."""
    python = closure.find_python(agent, site)
    tree = skeleton()
    tree.copy(f"usr/bin/{python.binary.name}", python.binary, 0o755)
    tree.link("usr/bin/python3", python.binary.name)
    add_modules(tree, python, agent, site)
    tree.copy("usr/lib/hako/init.py", HERE / "guest_init.py", 0o755)
    tree.link("init", "usr/lib/hako/init.py")
    tree.link("usr/bin/init", "../lib/hako/init.py")
    return tree


def add_modules(tree: Tree, python: closure.Python, agent: Path, site: Path) -> None:
    """Adds byte code (without sources), extension modules and the shared libraries that these need."""
    places = {module: place(module, python, agent, site) for module in python.modules}
    sources = [(module, f"/{path}.py") for module, path in places.items() if not module.extension]
    for name, code in closure.compile_all(python, sources).items():
        module = next(module for module, _ in sources if module.name == name)
        tree.file(f"{places[module]}.pyc", code)
    binaries = [python.binary, *(module.file for module in python.modules if module.extension)]
    libraries = closure.shared_libraries(binaries)
    unused: set[str] = set()
    for module in python.modules:
        if module.extension:
            data = module.file.read_bytes()
            unused |= elf.unused_libraries(data, libraries)
            tree.file(places[module] + "".join(module.file.suffixes), elf.without_unused(data, libraries), 0o755)
    add_libraries(tree, libraries)


def place(module: closure.Module, python: closure.Python, agent: Path, site: Path) -> str:
    """Where a module's file goes in the guest, without suffix."""
    if module.file.is_relative_to(agent):
        return f"usr/lib/hako/{module.relative}"
    if module.file.is_relative_to(site):
        return f"usr/lib/hako/site/{module.relative}"
    directory = python.stdlib.strip("/")
    return f"{directory}/lib-dynload/{module.relative}" if module.extension else f"{directory}/{module.relative}"
