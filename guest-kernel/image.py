#!/usr/bin/python3
"""Builds the guest image: the distribution's CPython, the agent and nothing else; the same inputs give the same bytes.

Usage: image.py [--floor | --initramfs] [--agent DIR] [--site DIR] [--out DIR]

    (nothing)     image.erofs for our kernel: a read-only disk (root=/dev/vda rootfstype=erofs)
    --initramfs   initrd.cpio for the distribution's kernel, with the modules of that kernel (see stock.py)
    --floor       floor.erofs with busybox and a trivial init: what a bare boot costs, for benchmarks

Owns what goes where in the guest. Knows no kernel configuration and no VMM. Called by build.py, the benchmarks, by hand.
Results are cached under <cache>/image/<key>/.
"""
from __future__ import annotations

import argparse
import marshal
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import artifacts
import closure
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
PYC_HEADER = 16
LOADER = "ld-linux-x86-64.so.2"
# Directories that exist only to be mounted on. /run, /tmp and what is below them are the agent's tmpfs.
MOUNT_POINTS = {"dev": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, "tmp": 0o1777, "root": 0o700, "mnt": 0o755,
                "var/tmp": 0o1777, "etc": 0o755, "etc/hako": 0o755}  # fmt: skip
# The merged /usr of the distribution, which the interpreter's and the loader's built-in paths rely on.
LINKS = {"bin": "usr/bin", "sbin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "usr/sbin": "bin"}
FLOOR_INIT = b"""#!/bin/busybox sh
echo hako-floor: ready
while read line; do echo hako-floor: here; done
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
    # The agent mounts the pod's own over it.
    tree.file("etc/resolv.conf", b"")
    # The interpreter complains on the console without it, even where it holds nothing.
    tree.directory(f"{python.stdlib}/lib-dynload")
    return tree


def add_modules(tree: Tree, python: closure.Python, agent: Path, site: Path) -> None:
    """Adds byte code (without sources), extension modules and the shared libraries that these need."""
    places = {module.name: place(module, python, agent, site) for module in python.modules}
    sources = [(module, f"/{places[module.name]}.py") for module in python.modules if not module.extension]
    compiled = closure.compile_all(python, sources)
    tree.file("usr/lib/hako/modules", archive(python.modules, sources, compiled))
    for name, code in compiled.items():
        if closure.before_init(name):
            tree.file(f"{places[name]}.pyc", code)
    extensions = closure.extensions(python)
    for module in python.modules:
        if module.extension:
            suffix = "".join(module.file.suffixes)
            tree.file(places[module.name] + suffix, extensions.contents[module.name], 0o755)
    for name, path in extensions.libraries.items():
        tree.copy(f"usr/lib64/{name}" if name == LOADER else f"{LIBRARIES}/{name}", path, 0o755)


def archive(modules: Sequence[closure.Module], sources: Sequence[tuple[closure.Module, str]],
            compiled: Mapping[str, bytes]) -> bytes:
    """The file that guest_init.py's Archive reads: the modules that are not needed before it, with their packages."""
    entries = {module.name: (module.package, shown, compiled[module.name][PYC_HEADER:])
               for module, shown in sources if not closure.before_init(module.name)}  # fmt: skip
    for name in closure.namespace_packages(module.name for module in modules):
        entries[name] = (True, f"/usr/lib/hako/site/{name.replace('.', '/')}/__init__.py", b"")
    # Version 2 of the format has no back references, whose presence would depend on reference counts.
    return marshal.dumps(dict(sorted(entries.items())), 2)


def place(module: closure.Module, python: closure.Python, agent: Path, site: Path) -> str:
    """Where a module's file goes in the guest, without suffix."""
    if module.file.is_relative_to(agent):
        return f"usr/lib/hako/{module.relative}"
    if module.file.is_relative_to(site):
        return f"usr/lib/hako/site/{module.relative}"
    directory = python.stdlib.strip("/")
    return f"{directory}/lib-dynload/{module.relative}" if module.extension else f"{directory}/{module.relative}"


def floor_tree() -> Tree:
    """The smallest guest: busybox and an init that says `hako-floor: ready`, and then answers each line it reads."""
    if not BUSYBOX.exists():
        raise BuildError(f"{BUSYBOX} is missing; apt-get install busybox-static")
    tree = skeleton()
    tree.copy("usr/bin/busybox", BUSYBOX, 0o755)
    for applet in ("sh", "true"):
        tree.link(f"usr/bin/{applet}", "busybox")
    tree.file("init", FLOOR_INIT, 0o755)
    return tree


def make_erofs(tree: Tree, target: Path) -> None:
    """Writes the tree as an uncompressed erofs image (compressed ones boot slower under TCG)."""
    with tempfile.TemporaryDirectory(prefix="hako-image-") as scratch:
        root = Path(scratch) / "root"
        root.mkdir(mode=0o755)
        tree.write(root)
        run(["mkfs.erofs", "-T", "0", "-U", UUID, "--all-root", target, root])
    check_size(target)


def make_initramfs(tree: Tree, target: Path) -> None:
    """Writes the tree as an initramfs, with the two device nodes that the kernel wants before /dev is mounted."""
    tree.device("dev/console", CONSOLE)
    tree.device("dev/null", NULL, 0o666)
    target.write_bytes(tree.cpio())
    check_size(target)


def check_size(target: Path) -> None:
    """BuildError for an image over the limit: something got in that does not belong there."""
    size = target.stat().st_size
    if size > SIZE_LIMIT:
        raise BuildError(f"{target.name} has {size >> 20} MiB, more than {SIZE_LIMIT >> 20}")


def ensure_erofs(tree: Tree, name: str = "image.erofs") -> Path:
    """The cached erofs image of a tree."""
    require({"mkfs.erofs": "erofs-utils"})
    tool = artifacts.file_digest(Path(shutil.which("mkfs.erofs") or ""))
    key = artifacts.key([("tree", tree.digest()), ("uuid", UUID), ("tool", tool), ("name", name)])
    return artifacts.ensure("image", key, lambda out: make_erofs(tree, out / name)) / name


def ensure_floor() -> Path:
    """The cached erofs image of the smallest guest."""
    return ensure_erofs(floor_tree(), "floor.erofs")


def ensure_initramfs(tree: Tree, kernel: stock.StockKernel) -> Path:
    """The cached initramfs of a tree, with the modules of the distribution's kernel."""
    stock.add_modules(tree, kernel)
    key = artifacts.key([("tree", tree.digest()), ("form", "cpio")])
    return artifacts.ensure("image", key, lambda out: make_initramfs(tree, out / "initrd.cpio")) / "initrd.cpio"


def default_site() -> Path:
    """The site-packages of the environment that this runs in (the checkout's .venv, or the installation's)."""
    return Path(sysconfig.get_path("platlib"))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the guest image.")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--floor", action="store_true", help="a trivial init instead of the agent")
    kind.add_argument("--initramfs", action="store_true", help="for the distribution's own kernel")
    parser.add_argument("--agent", type=Path, default=AGENT, help="package directory (default: the checkout's)")
    parser.add_argument("--site", type=Path, default=default_site(), help="site-packages with cffi and protobuf")
    parser.add_argument("--out", type=Path, help="also copy the image here")
    return parser.parse_args(arguments)


def build(options: argparse.Namespace) -> Path:
    """The image that the command line asks for."""
    if options.floor:
        return ensure_floor()
    tree = guest_tree(options.agent.resolve(), options.site.resolve())
    return ensure_initramfs(tree, stock.ensure()) if options.initramfs else ensure_erofs(tree)


def main(arguments: list[str]) -> int:
    """Prints the path of the image."""
    options = parse(arguments)
    try:
        path = build(options)
    except BuildError as exc:
        print(f"image.py: {exc}", file=sys.stderr)
        return 1
    if options.out:
        artifacts.publish(path.parent, options.out)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
