#!/usr/bin/python3
"""The distribution's own kernel for the guest: Debian's linux-image-cloud-amd64, fetched, not installed.

Usage: stock.py [--out DIR]

For a first run without a compiler. Its virtio, overlay and vsock drivers are modules: those needed to run are loaded at
boot in the order of /etc/hako/modules, those that containers may ask for (packet filters, virtual links) when the
kernel calls modprobe. Owns which modules these are, and the fetching. The machine's apt sources stay as they are; where
its package lists are missing or old, lists of our own are fetched from the same sources. Called by build.py and image.py.
Cached under <cache>/kernel/<key>/ as vmlinuz, config, version, modules/.
"""

from __future__ import annotations

import argparse
import fnmatch
import lzma
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import artifacts
import modules
from commands import BuildError, run
from tree import Tree

META_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX = Path("/usr/bin/busybox")
# Drivers of the machine; nothing in the guest would load them when a device appears.
AT_BOOT = ("virtio_pci", "virtio_mmio", "virtio_console", "virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon",
           "virtio_mem", "fuse", "virtiofs", "vsock", "vmw_vsock_virtio_transport", "overlay", "erofs", "ext4")  # fmt: skip
# What containers use, by paths below kernel/; loaded on demand.
ON_DEMAND = (
    "net/netfilter/nf_*.ko", "net/netfilter/nft_*.ko", "net/netfilter/nfnetlink*.ko", "net/netfilter/x*.ko",
    "net/ipv[46]/netfilter/ip*.ko", "net/ipv[46]/netfilter/nf*.ko", "net/bridge/bridge.ko", "net/bridge/br_netfilter.ko",
    "net/8021q/8021q.ko", "net/ipv4/*_diag.ko", "net/unix/unix_diag.ko", "net/packet/af_packet_diag.ko",
    "net/netlink/netlink_diag.ko", "net/sched/sch_fq*.ko", "net/sched/sch_htb.ko", "net/sched/sch_tbf.ko",
    "net/sched/sch_ingress.ko", "net/sched/cls_u32.ko", "net/sched/cls_bpf.ko", "net/sched/act_mirred.ko",
    "drivers/net/veth.ko", "drivers/net/tun.ko", "drivers/net/dummy.ko", "drivers/net/macvlan.ko",
    "drivers/net/ipvlan/ipvlan.ko", "fs/binfmt_misc.ko", "drivers/block/loop.ko", "block/bfq.ko", "lib/ts_*.ko",
)  # fmt: skip
UNWANTED = ("*/ip_vs*", "*/nf_conntrack_*", "*/nf_nat_*", "*/nf_flow*", "*/nft_flow*", "*/nft_tunnel*", "*/nft_xfrm*")


@dataclass(frozen=True)
class StockKernel:
    """A fetched kernel on the host: vmlinuz, its release (uname -r), the directory with its modules and their lists."""

    vmlinuz: Path
    release: str
    modules: Path


@dataclass(frozen=True)
class Candidate:
    """The package with the kernel itself, at the version that apt would install; with apt's options for its lists."""

    package: str
    version: str
    options: tuple[str, ...]


def ensure() -> StockKernel:
    """The distribution's current kernel, fetched if it is not in the cache; BuildError when apt has none."""
    candidate = find_candidate(()) or find_candidate(own_lists(update=False)) or find_candidate(own_lists(update=True))
    if not candidate:
        raise BuildError(f"apt knows no package {META_PACKAGE}; is this Debian, with its mirror in reach?")
    inputs = [("package", candidate.package), ("version", candidate.version)]
    key = artifacts.key([*inputs, *artifacts.file_inputs([Path(__file__), Path(modules.__file__)])])
    directory = artifacts.ensure("kernel", key, lambda out: make(candidate, out))
    return StockKernel(directory / "vmlinuz", (directory / "version").read_text().strip(), directory / "modules")


def find_candidate(options: tuple[str, ...]) -> Candidate | None:
    """What the meta package depends on, by the lists that apt's `options` name; None when they do not have it."""
    try:
        text = run(["apt-cache", *options, "show", "--no-all-versions", META_PACKAGE]).decode()
    except BuildError:
        return None
    found = re.search(r"^Depends:.*?(linux-image-\S+) \(= (\S+)\)", text, re.MULTILINE)
    return Candidate(found[1], found[2], options) if found else None


def own_lists(*, update: bool) -> tuple[str, ...]:
    """apt's options for package lists in our cache, from the machine's sources; fetched now with `update`."""
    lists = artifacts.cache_root() / "apt" / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    caches = artifacts.cache_root() / "apt" / "cache"
    (caches / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    options = ("-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={caches}", "-o", "APT::Sandbox::User=root")
    if update:
        run(["apt-get", *options, "-q", "update"], timeout=600)
    return options


def make(candidate: Candidate, out: Path) -> None:
    """Fetches, checks (apt does, against its signed lists), unpacks and keeps what a guest needs."""
    with tempfile.TemporaryDirectory(prefix="hako-stock-") as scratch:
        package = download(candidate, Path(scratch))
        root = Path(scratch) / "root"
        run(["dpkg-deb", "-x", package, root])
        keep(root, out)


def download(candidate: Candidate, directory: Path) -> Path:
    """The package's file; once more with fresh lists of our own when the mirror has it no longer."""
    try:
        return _download(candidate, directory)
    except BuildError:
        fresh = find_candidate(own_lists(update=True))
        if not fresh:
            raise
        return _download(fresh, directory)


def keep(root: Path, out: Path) -> None:
    """From an unpacked package: the kernel, its configuration, and the modules uncompressed, with their lists."""
    (vmlinuz,) = (root / "boot").glob("vmlinuz-*")
    release = vmlinuz.name.removeprefix("vmlinuz-")
    source = next(path for path in (root / "lib/modules", root / "usr/lib/modules") if path.is_dir()) / release
    (out / "vmlinuz").write_bytes(vmlinuz.read_bytes())
    (out / "config").write_bytes((root / "boot" / f"config-{release}").read_bytes())
    (out / "version").write_text(release + "\n")
    contents = {path: read_module(source / path) for path in candidates(source)}
    known = {module.name: module for module in (modules.describe(*item) for item in contents.items())}
    builtin = builtin_names((source / "modules.builtin").read_text())
    boot = modules.load_order(AT_BOOT, known, builtin)
    kept = modules.load_order([*(one.name for one in boot), *on_demand(known)], known, builtin)
    _write_modules(out / "modules", kept, contents)
    (out / "modules/modules.dep").write_text(modules.modules_dep(kept, known, builtin))
    (out / "modules/modules.alias").write_text(modules.modules_alias(kept))
    (out / "modules/boot").write_text("".join(f"{module.path}\n" for module in boot))


def candidates(source: Path) -> list[str]:
    """All modules of a kernel, as paths without a suffix of compression, below /lib/modules/RELEASE."""
    return sorted({re.sub(r"\.xz$", "", str(path.relative_to(source))) for path in source.rglob("*.ko*")})


def read_module(path: Path) -> bytes:
    """A module's content, decompressed: the guest's finit_module gets plain files."""
    return path.read_bytes() if path.exists() else lzma.decompress(path.with_name(path.name + ".xz").read_bytes())


def on_demand(known: dict[str, modules.Module]) -> list[str]:
    """Names of the modules that ON_DEMAND's patterns find, without the unwanted ones."""
    def wanted(path: str) -> bool:
        inside = path.removeprefix("kernel/")
        if any(fnmatch.fnmatch(inside, pattern) for pattern in UNWANTED):
            return False
        return any(fnmatch.fnmatch(inside, pattern) for pattern in ON_DEMAND)

    return sorted(name for name, module in known.items() if wanted(module.path))


def builtin_names(text: str) -> frozenset[str]:
    """Names of what modules.builtin lists."""
    return frozenset(modules.plain(line.rpartition("/")[2].partition(".")[0]) for line in text.splitlines() if line)


def add_modules(tree: Tree, kernel: StockKernel) -> None:
    """Adds the modules to a guest image, the list for its init, and a modprobe for those on demand."""
    base = f"usr/lib/modules/{kernel.release}"
    for path in sorted(kernel.modules.rglob("*")):
        if path.is_file() and path.name != "boot":
            tree.copy(f"{base}/{path.relative_to(kernel.modules)}", path)
    boot = (kernel.modules / "boot").read_text().splitlines()
    tree.file("etc/hako/modules", "".join(f"/{base}/{path}\n" for path in boot).encode())
    if not BUSYBOX.exists():
        raise BuildError(f"{BUSYBOX} is missing; apt-get install busybox-static")
    tree.copy("usr/bin/modprobe", BUSYBOX, 0o755)


def _download(candidate: Candidate, directory: Path) -> Path:
    name = f"{candidate.package}={candidate.version}"
    run(["apt-get", *candidate.options, "-o", "APT::Sandbox::User=root", "-q", "download", name], cwd=directory)
    return next(directory.glob("*.deb"))


def _write_modules(directory: Path, kept: list[modules.Module], contents: dict[str, bytes]) -> None:
    for module in kept:
        target = directory / module.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(contents[module.path])


def main(arguments: list[str]) -> int:
    """Prints the path of vmlinuz."""
    parser = argparse.ArgumentParser(description="Fetch the distribution's kernel for the guest.")
    parser.parse_args(arguments)
    try:
        print(ensure().vmlinuz)
    except (BuildError, modules.ModuleError) as exc:
        print(f"stock.py: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
