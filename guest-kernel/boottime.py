#!/usr/bin/python3
"""Boots a guest under QEMU and says when its first line came: the measurements of README.md, and tests/vm.

Usage: boottime.py [--runs N] [--append WORDS] [--machine TYPE] [--firmware FILE] [--floor] [--stock] [--show]

The plain machine of a bare boot: no network, no vsock, no share, one vCPU, console hvc0 on a socket. Knows QEMU's options
for that and no more; the shim's machine is shim/hypervisor/qemu/argv.py. Wall time is worth something on an idle machine
only; processor time of QEMU (user + system) is what can be compared on a busy one.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import image

import build

READY = b"hako-agent: ready"
FLOOR_READY = b"hako-floor: ready"
# Without devices that a VM has no use for: no SATA, SMBus, keyboard controller, VMware port, USB.
Q35 = "q35,sata=off,smbus=off,i8042=off,vmport=off,usb=off"


@dataclass(frozen=True)
class Boot:
    """One way to boot: host paths, kernel command line, QEMU's -machine, MiB of memory, the line that ends it."""

    kernel: str
    image: str | None
    initrd: str | None
    cmdline: str
    ready: bytes = READY
    machine: str = Q35
    memory: int = 256
    firmware: str = ""


@dataclass(frozen=True)
class Result:
    """Seconds from QEMU's start to the line (None: it never came), QEMU's processor seconds, the whole console."""

    seconds: float | None
    cpu: float
    console: bytes


def of_guest(guest: build.Guest) -> Boot:
    """How a guest of build.py boots under TCG."""
    return Boot(guest.kernel, guest.image, guest.initrd, f"{guest.cmdline} {guest.cmdline_tcg}")


def argv(boot: Boot, console: int) -> list[str]:
    """QEMU's command line; `console` is the descriptor of a socket for hvc0."""
    bus = "device" if boot.machine.startswith("microvm") else "pci"
    words = ["qemu-system-x86_64", "-machine", boot.machine, "-accel", "tcg", "-cpu", "max,-erms,-fsrm", "-smp", "1",
             "-m", str(boot.memory), "-nodefaults", "-no-user-config", "-no-reboot",
             "-display", "none", "-serial", "none", "-monitor", "none",
             "-kernel", boot.kernel, "-append", boot.cmdline,
             "-chardev", f"socket,id=console,fd={console}",
             "-device", f"virtio-serial-{bus}", "-device", "virtconsole,chardev=console"]  # fmt: skip
    if boot.image:
        words += ["-drive", f"file={boot.image},if=none,id=root,format=raw,readonly=on",
                  "-device", f"virtio-blk-{bus},drive=root"]  # fmt: skip
    if boot.initrd:
        words += ["-initrd", boot.initrd]
    return [*words, "-bios", boot.firmware] if boot.firmware else words


def run(boot: Boot, timeout: float = 60) -> Result:
    """Boots once, until the line comes, QEMU ends (a panic does that), or `timeout` seconds are over."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        begin = time.monotonic()
        qemu = subprocess.Popen(argv(boot, theirs.fileno()), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        try:
            seconds, console = _read_until(ours, boot.ready, begin, timeout)
        finally:
            os.kill(qemu.pid, 9)
            _, _, usage = os.wait4(qemu.pid, 0)
            qemu.returncode = -9
    return Result(seconds, usage.ru_utime + usage.ru_stime, console)


def _read_until(console: socket.socket, line: bytes, begin: float, timeout: float) -> tuple[float | None, bytes]:
    seen = b""
    while (left := begin + timeout - time.monotonic()) > 0 and select.select([console], [], [], left)[0]:
        data = console.recv(65536)
        if not data:
            break
        seen += data
        if line in seen:
            return time.monotonic() - begin, seen
    return None, seen


def summary(results: Sequence[Result]) -> str:
    """Median and least wall and processor time in milliseconds, and how many boots failed."""
    good = [(result.seconds, result.cpu) for result in results if result.seconds is not None]
    if not good:
        return "no boot reached the line"
    wall, cpu = ([value * 1000 for value in column] for column in zip(*good, strict=True))
    failed = f", {len(results) - len(good)} failed" if len(good) < len(results) else ""
    return (f"wall median {statistics.median(wall):.0f} least {min(wall):.0f} ms, "
            f"cpu median {statistics.median(cpu):.0f} least {min(cpu):.0f} ms, {len(good)} boots{failed}")  # fmt: skip


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the boot of a guest under TCG.")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--append", default="", help="more words for the kernel's command line")
    parser.add_argument("--machine", default=Q35, help="QEMU's -machine")
    parser.add_argument("--firmware", default="", help="QEMU's -bios")
    parser.add_argument("--floor", action="store_true", help="a trivial init instead of the agent")
    parser.add_argument("--stock", action="store_true", help="the distribution's kernel")
    parser.add_argument("--show", action="store_true", help="print the console of the last boot")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Prints the summary."""
    options = parse(arguments)
    guest = build.ensure_stock() if options.stock else build.ensure_hako()
    boot = of_guest(guest)
    disk = str(image.ensure_floor()) if options.floor else boot.image
    boot = Boot(boot.kernel, disk, boot.initrd, f"{boot.cmdline} {options.append}",
                FLOOR_READY if options.floor else READY, options.machine, firmware=options.firmware)  # fmt: skip
    results = [run(boot) for _ in range(options.runs)]
    if options.show:
        print(results[-1].console.decode(errors="replace"))
    print(summary(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
