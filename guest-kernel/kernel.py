#!/usr/bin/python3
"""Builds the guest kernel: Debian's kernel source package + fragments/*.config -> vmlinux with a PVH entry.

Usage: kernel.py [--out DIR] [--source TARBALL] [--jobs N]

Owns finding the source, configuring and compiling. Knows no guest image and no VMM. Called by build.py and by hand.
The result is cached under <cache>/kernel/<key>/ as `vmlinux`, `config` and `version`.
"""
from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import artifacts
import fragments
from commands import BuildError, require, run

HERE = Path(__file__).resolve().parent
FRAGMENTS = HERE / "fragments"
# Where Debian's linux-source-X.Y packages put their tarball.
SOURCES = Path("/usr/src")
TOOLS = {"make": "make", "gcc": "gcc", "flex": "flex", "bison": "bison", "bc": "bc", "ld": "binutils",
         "strip": "binutils", "xz": "xz-utils", "tar": "tar", "perl": "perl"}  # fmt: skip
LIBRARIES = {Path("/usr/include/gelf.h"): "libelf-dev"}
# The compiler's version and the build's user, host and time must not be in the result: same inputs, same bytes.
STAMP = {"KBUILD_BUILD_TIMESTAMP": "@0", "KBUILD_BUILD_USER": "hako", "KBUILD_BUILD_HOST": "hako",
         "KBUILD_BUILD_VERSION": "1"}  # fmt: skip


def find_source(directory: Path = SOURCES) -> Path:
    """The newest linux-source-X.Y.tar.xz of a host directory; BuildError says which package to install."""
    found = {}
    for path in directory.glob("linux-source-*.tar.xz"):
        version = re.fullmatch(r"linux-source-(\d+)\.(\d+)\.tar\.xz", path.name)
        if version:
            found[int(version[1]), int(version[2])] = path
    if not found:
        raise BuildError(f"no linux-source-*.tar.xz in {directory}; apt-get install linux-source")
    return found[max(found)]


def kernel_key(source: Path, fragment_dir: Path = FRAGMENTS) -> str:
    """Cache key: source tarball, fragments, this script and what it imports for the configuration, the compiler."""
    inputs: list[tuple[str, str | bytes]] = [("source", artifacts.file_digest(source))]
    inputs += artifacts.file_inputs(sorted(fragment_dir.glob("*.config")))
    inputs += artifacts.file_inputs([HERE / "kernel.py", HERE / "fragments.py"])
    return artifacts.key([*inputs, ("gcc", run(["gcc", "--version"]))])


def kernel_version(tree: Path) -> fragments.Version:
    """(major, minor) from the top Makefile of a kernel tree."""
    text = (tree / "Makefile").read_text()
    major, minor = (re.search(rf"^{name} = (\d+)$", text, re.MULTILINE) for name in ("VERSION", "PATCHLEVEL"))
    if not major or not minor:
        raise BuildError(f"{tree / 'Makefile'} states no kernel version")
    return int(major[1]), int(minor[1])


def configure(tree: Path, objects: Path, fragment_dir: Path = FRAGMENTS) -> None:
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


def build(source: Path, out: Path, jobs: int) -> None:
    """Unpacks, configures, compiles in a temporary directory and leaves vmlinux, config and version in `out`."""
    require(TOOLS)
    for header, package in LIBRARIES.items():
        if not header.exists():
            raise BuildError(f"missing {header}; apt-get install {package}")
    with tempfile.TemporaryDirectory(prefix="hako-kernel-", dir=_scratch()) as scratch:
        run(["tar", "-xf", source, "-C", scratch], timeout=1200)
        tree = next(path for path in Path(scratch).iterdir() if (path / "Kbuild").exists())
        objects = Path(scratch) / "objects"
        objects.mkdir()
        configure(tree, objects)
        compile_kernel(tree, objects, jobs)
        collect(objects, out)


def collect(objects: Path, out: Path) -> None:
    """Strips vmlinux into `out`, with its configuration and its release (what uname -r says) beside it."""
    run(["strip", "--strip-all", "-o", out / "vmlinux", objects / "vmlinux"])
    (out / "config").write_bytes((objects / ".config").read_bytes())
    (out / "version").write_text((objects / "include/config/kernel.release").read_text().strip() + "\n")


def ensure(source: Path | None = None, jobs: int | None = None) -> Path:
    """The cache directory of the kernel for these inputs, compiled now if it is not there."""
    tarball = source or find_source()
    return artifacts.ensure("kernel", kernel_key(tarball), lambda out: build(tarball, out, jobs or os.cpu_count() or 1))


def _scratch() -> Path:
    """Where 2 GiB of objects fit: beside the cache, not on a small /tmp."""
    path = artifacts.cache_root() / "kernel"
    path.mkdir(parents=True, exist_ok=True)
    return path


def main(arguments: list[str]) -> int:
    """The command line; prints the path of vmlinux."""
    parser = argparse.ArgumentParser(description="Build the guest kernel from Debian's linux-source.")
    parser.add_argument("--out", type=Path, help="also copy vmlinux, config and version here")
    parser.add_argument("--source", type=Path, help="kernel source tarball (default: the newest in /usr/src)")
    parser.add_argument("--jobs", type=int, help="parallel compilers (default: all processors)")
    options = parser.parse_args(arguments)
    try:
        directory = ensure(options.source, options.jobs)
    except (BuildError, fragments.FragmentError) as exc:
        print(f"kernel.py: {exc}", file=sys.stderr)
        return 1
    if options.out:
        artifacts.publish(directory, options.out)
    print(directory / "vmlinux")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
