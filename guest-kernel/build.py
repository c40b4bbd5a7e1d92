#!/usr/bin/python3
"""Makes what boots, as far as it is not there: the one entry for `make`, tests and CI.

Usage: build.py guest|kernel|floor [--stock] [--print-json]

    guest    our kernel with its image if that kernel was built for these inputs, else the distribution's kernel and initramfs
    kernel   our kernel, compiled if need be (minutes), and its image
    floor    the trivial image for our kernel that benchmarks boot

Prints where things are, as JSON. The newest in the cache is what boots (shim/sandbox/guestfiles.py), so what is chosen here
is marked as such by its time.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import artifacts
import fragments
import image
import kernel
import stock
from commands import BuildError


def ours() -> dict[str, str]:
    """Our kernel and its image."""
    directory = kernel.ensure()
    disk = image.ensure_erofs(image.guest_tree(image.AGENT, image.default_site()))
    return _chosen({"kind": "hako", "kernel": str(directory / "vmlinux"), "image": str(disk), "initrd": ""})


def distribution() -> dict[str, str]:
    """The distribution's kernel and the initramfs for it."""
    cloud = stock.ensure()
    tree = image.guest_tree(image.AGENT, image.default_site())
    initrd = image.ensure_initramfs(tree, cloud)
    return _chosen({"kind": "stock", "kernel": str(cloud.vmlinuz), "image": "", "initrd": str(initrd)})


def floor() -> dict[str, str]:
    """The trivial image; nothing is chosen to boot."""
    disk = image.ensure_erofs(image.floor_tree())
    os.utime(disk, (0, 0))  # the newest image is what boots, and that must never be this one
    return {"kind": "floor", "kernel": str(kernel.ensure() / "vmlinux"), "image": str(disk), "initrd": ""}


def is_built() -> bool:
    """Whether our kernel is in the cache for the present source and fragments."""
    try:
        key = kernel.kernel_key(kernel.find_source())
    except BuildError:
        return False
    return (artifacts.cache_root() / "kernel" / key / "vmlinux").exists()


def _chosen(files: dict[str, str]) -> dict[str, str]:
    for name in ("kernel", "image", "initrd"):
        if files[name]:
            os.utime(Path(files[name]))
    return files


def main(arguments: list[str]) -> int:
    """Makes what the command line asks for and prints it."""
    parser = argparse.ArgumentParser(description="Build what boots.")
    parser.add_argument("what", choices=("guest", "kernel", "floor"))
    parser.add_argument("--stock", action="store_true", help="with guest: the distribution's kernel, even if ours is there")
    parser.add_argument("--print-json", action="store_true", help="(always done)")
    options = parser.parse_args(arguments)
    try:
        if options.what == "floor":
            files = floor()
        elif options.what == "kernel" or (is_built() and not options.stock):
            files = ours()
        else:
            files = distribution()
    except (BuildError, fragments.FragmentError) as exc:
        print(f"build.py: {exc}", file=sys.stderr)
        return 1
    print(json.dumps(files))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
