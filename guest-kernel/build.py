#!/usr/bin/python3
"""The one door to the guest: makes sure that a kernel and an image for it are there, and says where.

Usage: build.py [guest | kernel | stock] [--print-json]

    guest   (default) our kernel if it was compiled already, else the distribution's
    kernel  our kernel, compiled now if it must be (minutes)
    stock   the distribution's kernel

With --print-json the answer is one JSON object: kernel, image or initrd (host paths, the other null), kind (hako or
stock), version, cmdline (kernel command line), cmdline_tcg (to be appended where QEMU emulates the processor).
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

# A panic ends the VM at once (QEMU runs with -no-reboot). Nothing below err reaches the console before the hello line.
_ALWAYS = "console=hvc0 panic=-1 quiet"
# Reason for each: README.md, "Command line". The second boot of a failed guest appends 8250.nr_uarts=1 console=ttyS0.
_FAST = (
    "noreplace-smp no_timer_check tsc=reliable swiotlb=noforce memhp_default_state=online "
    "rcupdate.rcu_expedited=1 random.trust_cpu=on 8250.nr_uarts=0 dummy.numdummies=0"
)
_EROFS = "root=/dev/vda ro rootfstype=erofs init=/init"
_INITRAMFS = "rdinit=/init"
# The emulated processor does not speculate; without the LAPIC timer the kernel need not calibrate it (0.2 s), the HPET
# does its work.
_TCG = "mitigations=off nolapic_timer"


@dataclass(frozen=True)
class Guest:
    """What boots: host paths and command lines. Exactly one of `image` and `initrd` is there."""

    kernel: str
    image: str | None
    initrd: str | None
    kind: str
    version: str
    cmdline: str
    cmdline_tcg: str = _TCG


def ensure_hako(directory: Path | None = None) -> Guest:
    """Our kernel (compiled if it must be, unless its directory is given) with the erofs image."""
    made = directory or kernel.ensure()
    disk = image.ensure_erofs(image.guest_tree(image.AGENT, image.default_site()))
    version = (made / "version").read_text().strip()
    return Guest(str(made / "vmlinux"), str(disk), None, "hako", version, f"{_ALWAYS} {_FAST} {_EROFS}")


def ensure_stock() -> Guest:
    """The distribution's kernel with the initramfs."""
    found = stock.ensure()
    initrd = image.ensure_initramfs(image.guest_tree(image.AGENT, image.default_site()), found)
    return Guest(str(found.vmlinuz), None, str(initrd), "stock", found.release, f"{_ALWAYS} {_FAST} {_INITRAMFS}")


def ensure(what: str) -> Guest:
    """The guest that `what` (guest, kernel, stock) asks for, made the one that the shim finds. Raises BuildError."""
    made = kernel.cached() if what == "guest" else None
    guest = ensure_stock() if what == "stock" or (what == "guest" and not made) else ensure_hako(made)
    for path in (guest.kernel, guest.image, guest.initrd):
        if path:
            os.utime(path)
    return guest


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make sure that a guest kernel and image are there.")
    parser.add_argument("what", nargs="?", default="guest", choices=["guest", "kernel", "stock"])
    parser.add_argument("--print-json", action="store_true", help="the answer as a JSON object")
    options = parser.parse_args(arguments)
    try:
        guest = asdict(ensure(options.what))
    except (BuildError, fragments.FragmentError, modules.ModuleError) as exc:
        print(f"build.py: {exc}", file=sys.stderr)
        return 1
    paths = [guest[name] for name in ("kernel", "image", "initrd") if guest[name]]
    print(json.dumps(guest) if options.print_json else "\n".join(paths))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
