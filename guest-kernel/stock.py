"""The distribution's own cloud kernel: fetched, not compiled, so that a first run need not wait.

Owns the package (downloaded by apt with its signatures checked, unpacked in the cache, never installed) and the choice and
order of the modules that the guest needs. Knows nothing of images. Called by image.py and build.py.

Debian's linux-image-cloud-amd64 is a meta package that depends on the real one; it has a bzImage and nearly every virtio
driver as a module. Debian 12 ships plain .ko files, Debian 13 .ko.xz, which are unpacked here: the guest has no xz.
"""
from __future__ import annotations

import lzma
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import artifacts
from commands import BuildError, require, run
from tree import Tree

META = "linux-image-cloud-amd64"
# What a guest needs, in the order of need: the console and the root of PCI first, so that failures are seen.
WANTED = (
    "virtio_pci", "virtio_mmio", "virtio_console", "virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon", "virtio_mem",
    "vmw_vsock_virtio_transport", "fuse", "virtiofs", "overlay", "ext4", "erofs", "loop",
    "nf_tables", "nft_chain_nat", "nft_masq", "nft_ct", "nft_compat", "ip_tables", "ip6_tables", "iptable_filter", "iptable_nat",
    "xt_conntrack", "xt_MASQUERADE", "xt_addrtype", "xt_comment", "bridge", "veth", "tun", "macvlan", "unix_diag", "inet_diag",
)  # fmt: skip
# Without these no pod can run at all.
ESSENTIAL = ("virtio_pci", "virtio_console", "virtio_net", "vmw_vsock_virtio_transport", "virtiofs", "overlay")


class StockKernel(NamedTuple):
    """An unpacked kernel package: its bzImage and its module tree (both host paths)."""

    release: str
    vmlinuz: Path
    modules: Path


def ensure() -> StockKernel:
    """The newest cloud kernel that the machine's apt knows, downloaded and unpacked if it is not in the cache."""
    require({"apt-get": "apt", "dpkg-deb": "dpkg", "depmod": "kmod"})
    package = real_package(run(["apt-cache", "show", META]).decode())
    version = _candidate(run(["apt-cache", "policy", package]).decode(), package)
    key = artifacts.key([("package", package), ("version", version)])
    directory = artifacts.ensure("kernel", key, lambda out: _unpack(package, version, out))
    return _found(directory)


def real_package(record: str) -> str:
    """The name that the meta package's record depends on, e.g. linux-image-6.1.0-40-cloud-amd64."""
    found = re.search(r"^Depends:.*?\b(linux-image-[0-9][^ ,(]*-cloud-[a-z0-9]+)", record, re.MULTILINE)
    if not found:
        raise BuildError(f"apt does not know what {META} depends on; run apt-get update")
    return found.group(1)


def _candidate(policy: str, package: str) -> str:
    found = re.search(r"Candidate: (\S+)", policy)
    if not found or found.group(1) == "(none)":
        raise BuildError(f"apt has no {package}; run apt-get update")
    return found.group(1)


def _unpack(package: str, version: str, out: Path) -> None:
    """Download and unpack; keep the bzImage and the modules with their dependencies listed."""
    with tempfile.TemporaryDirectory(prefix="hako-stock-") as scratch:
        run(["apt-get", "-o", "APT::Sandbox::User=root", "download", f"{package}={version}"], cwd=Path(scratch))
        archive = next(Path(scratch).glob("*.deb"))
        root = Path(scratch) / "root"
        run(["dpkg-deb", "-x", archive, root])
        modules = next((path for path in (root / "lib/modules", root / "usr/lib/modules") if path.is_dir()), None)
        if modules is None:
            raise BuildError(f"{package} {version} has no modules")
        release = next(modules.iterdir()).name
        vmlinuz = next(root.glob("boot/vmlinuz-*"))
        # depmod looks below DIR/lib/modules, wherever the package has them.
        (out / "lib").mkdir()
        run(["cp", "-a", modules, out / "lib/modules"])
        run(["depmod", "-b", out, release])
        run(["cp", vmlinuz, out / "vmlinuz"])
        # The package has it for root alone; the VMM runs as somebody else.
        (out / "vmlinuz").chmod(0o644)
        (out / "version").write_text(release + "\n")


def _found(directory: Path) -> StockKernel:
    release = (directory / "version").read_text().strip()
    return StockKernel(release, directory / "vmlinuz", directory / "lib/modules" / release)


def add_modules(tree: Tree, kernel: StockKernel) -> None:
    """Adds the modules that the guest needs, plain, and their list in load order (/etc/hako/modules)."""
    dependencies = parse_dependencies((kernel.modules / "modules.dep").read_text())
    builtin = {module_name(line) for line in (kernel.modules / "modules.builtin").read_text().splitlines()}
    order = load_order(WANTED, dependencies, builtin)
    directory = f"lib/modules/{kernel.release}".replace("lib/", "usr/lib/", 1)
    for path in order:
        tree.file(f"{directory}/{plain_path(path)}", _plain(kernel.modules / path))
    listing = "".join(f"/{directory}/{plain_path(path)}\n" for path in order)
    tree.file("etc/hako/modules", listing.encode())


def parse_dependencies(text: str) -> dict[str, list[str]]:
    """modules.dep ("FILE: NEEDED NEEDED ...", the direct and indirect ones) as FILE -> what it needs."""
    lines = (line.partition(":") for line in text.splitlines())
    return {path: needed.split() for path, _colon, needed in lines if path}


def load_order(wanted: Iterable[str], dependencies: Mapping[str, list[str]], builtin: set[str]) -> list[str]:
    """Files of `wanted` with what they need, each once, every one after what it needs.

    What is built in needs no file. An essential module that is neither is a BuildError; others are left out.
    """
    files = {module_name(path): path for path in dependencies}
    order: list[str] = []

    def visit(path: str) -> None:
        for needed in dependencies[path]:
            visit(needed)
        if path not in order:
            order.append(path)

    for name in wanted:
        if name in files:
            visit(files[name])
        elif name not in builtin and name in ESSENTIAL:
            raise BuildError(f"the distribution's kernel has no module {name}")
    return order


def module_name(path: str) -> str:
    """The kernel's name of a module from its file: dashes are underscores, suffixes are none."""
    return os.path.basename(path).partition(".")[0].replace("-", "_")


def plain_path(path: str) -> str:
    """A module's path without the suffix of a compression."""
    return path.removesuffix(".xz")


def _plain(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content
