"""The machine that the figures come from: cores, kernel, stacks, guest, how busy it was.

Owns: finding that out. Used by the report.
"""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.lab import Lab
from tests.framework.containerd import ROOT, binary


def describe(lab: Lab) -> dict[str, str]:
    """Name -> value, for people."""
    system = platform.freedesktop_os_release()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _said("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "processor": f"{os.cpu_count()} x {_model()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 30} GiB",
        "host": f"{system['PRETTY_NAME']}, Linux {platform.release()}, Python {platform.python_version()}",
        **{stack.name: f"{stack.described()}, TCG" for stack in lab.stacks},
        "engine": _said(binary("containerd"), "--version").removeprefix("containerd github.com/containerd/"),
        "guest": f"{'own' if lab.guest.kernel.endswith('vmlinux') else 'stock'} kernel {_kernel(lab.guest.kernel)}",
        "load average at the start": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }


def _said(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    return (done.stdout.splitlines() or [""])[0].strip()


def _model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _kernel(path: str) -> str:
    version = Path(path).with_name("version")
    return version.read_text().strip() if version.exists() else path
