#!/usr/bin/python3
"""Builds the guest kernel: Debian's kernel source package + fragments/*.config -> vmlinux with a PVH entry.

Usage: kernel.py [--out DIR] [--source TARBALL] [--jobs N]

Owns finding the source, the key and the cache; recipe.py compiles. Knows no guest image and no VMM.
Called by build.py and by hand. The result is cached under <cache>/kernel/<key>/ as `vmlinux`, `config` and `version`.
"""
from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

import artifacts
import fragments
import recipe
from commands import BuildError, run

HERE = Path(__file__).resolve().parent
FRAGMENTS = HERE / "fragments"
# Where Debian's linux-source-X.Y packages put their tarball.
SOURCES = Path("/usr/src")


def find_source(directory: Path = SOURCES) -> Path:
    """The newest linux-source-X.Y.tar.xz of a host directory; BuildError says which package to install."""
    found = sorted(directory.glob("linux-source-*.tar.xz"), key=source_version)
    if not found:
        raise BuildError(f"no linux-source-*.tar.xz in {directory}; apt-get install linux-source")
    return found[-1]


def source_version(source: Path) -> fragments.Version:
    """(major, minor) from a tarball's name; BuildError if it is not named as Debian's are."""
    found = re.fullmatch(r"linux-source-(\d+)\.(\d+)\.tar\.xz", source.name)
    if not found:
        raise BuildError(f"{source} is not named linux-source-X.Y.tar.xz")
    return int(found[1]), int(found[2])


def kernel_key(source: Path, fragment_dir: Path = FRAGMENTS) -> str:
    """Cache key: the source's content, the options that are asked for (not their reasons), the recipe, the compiler."""
    asked = fragments.select(fragments.read(fragment_dir), source_version(source))
    return artifacts.key([
        ("source", artifacts.file_digest(source)), ("options", fragments.render(asked)),
        ("recipe", artifacts.file_digest(Path(recipe.__file__))), ("compiler", _compiler()),
    ])  # fmt: skip


def ensure(source: Path | None = None, jobs: int | None = None) -> Path:
    """The cache directory of the kernel for these inputs, compiled now if it is not there."""
    tarball = source or find_source()
    return artifacts.ensure("kernel", kernel_key(tarball), lambda out: recipe.build(
        tarball, FRAGMENTS, out, out, jobs or os.cpu_count() or 1))  # fmt: skip


def cached(source_dir: Path = SOURCES) -> Path | None:
    """The cache directory of the kernel for these inputs if it was compiled; never compiles.

    Without a source package (a machine that only got the result) the kernel that was compiled last will do.
    """
    root = artifacts.cache_root() / "kernel"
    try:
        path = root / kernel_key(find_source(source_dir))
        return path if path.is_dir() else None
    except BuildError:
        made = sorted(root.glob("*/vmlinux"), key=lambda path: path.stat().st_mtime)
        return made[-1].parent if made else None


def _compiler() -> bytes:
    try:
        return run(["gcc", "--version"])
    except BuildError:
        return b""


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
