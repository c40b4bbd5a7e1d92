#!/usr/bin/python3
"""The one door to the guest: makes sure that a kernel and an image for it are there, and says where.

Usage: build.py [guest | kernel | stock] [--print-json] [--aside]

    guest   (default) our kernel if it was compiled already, else the distribution's
    kernel  our kernel, compiled now if it must be (minutes)
    stock   the distribution's kernel

With --print-json the answer is one JSON object: kernel, image or initrd (host paths, the other null), kind (hako or
stock), version. The kernel's command line is the shim's business (shim/hypervisor/qemu/argv.py).
Without it, the paths, one in a line. What was asked for last is what `hako` and the shim find in the cache (the
youngest file). Called by `make`, CI and tests. Knows which image goes with which kernel; how they are made is for
kernel.py, stock.py and image.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import fragments
import image
import kernel
import modules
import stock
from commands import BuildError


@dataclass(frozen=True)
class Guest:
    """What boots, as host paths. Exactly one of `image` and `initrd` is there."""

    kernel: str
    image: str | None
    initrd: str | None
    kind: str
    version: str


def ensure_hako(directory: Path | None = None) -> Guest:
    """Our kernel (compiled if it must be, unless its directory is given) with the erofs image."""
    made = directory or kernel.ensure()
    disk = image.ensure_erofs(image.guest_tree(image.AGENT, image.default_site()))
    version = (made / "version").read_text().strip()
    return Guest(str(made / "vmlinux"), str(disk), None, "hako", version)


def ensure_stock() -> Guest:
    """The distribution's kernel with the initramfs."""
    found = stock.ensure()
    initrd = image.ensure_initramfs(image.guest_tree(image.AGENT, image.default_site()), found)
    return Guest(str(found.vmlinuz), None, str(initrd), "stock", found.release)


def ensure(what: str, *, chosen: bool = True) -> Guest:
    """The guest that `what` (guest, kernel, stock) asks for, if `chosen` made the one that the shim finds.

    Raises BuildError.
    """
    made = kernel.cached() if what == "guest" else None
    guest = ensure_stock() if what == "stock" or (what == "guest" and not made) else ensure_hako(made)
    for path in (guest.kernel, guest.image, guest.initrd):
        if path and chosen:
            os.utime(path)
    return guest


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make sure that a guest kernel and image are there.")
    parser.add_argument("what", nargs="?", default="guest", choices=["guest", "kernel", "stock"])
    parser.add_argument("--print-json", action="store_true", help="the answer as a JSON object")
    parser.add_argument("--aside", action="store_true", help="what the shim finds stays what it was")
    options = parser.parse_args(arguments)
    try:
        guest = asdict(ensure(options.what, chosen=not options.aside))
    except (BuildError, fragments.FragmentError, modules.ModuleError) as exc:
        print(f"build.py: {exc}", file=sys.stderr)
        return 1
    paths = [guest[name] for name in ("kernel", "image", "initrd") if guest[name]]
    print(json.dumps(guest) if options.print_json else "\n".join(paths))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
