"""QEMU 8.2 or newer and the Rust virtiofsd, which save a share mounted: Debian 13 has them, Debian 12 beside its own.

Owns: where both are, as a drop-in of the configuration. HAKO_TEST_STACK=new runs all VM tests with it. Used by
tests/framework/containerd.py and the tests of such templates.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim import tools
from shim.config import HypervisorConfig
from shim.hypervisor import host
from shim.sandbox import savedshare
from tests.framework import daemons


def qemu() -> str | None:
    """The machine's own QEMU if it is new enough, or the one in the cache."""
    own = HypervisorConfig()
    if os.access(own.path, os.X_OK) and host.version_numbers(host.version(own)) >= savedshare.FIRST_QEMU:
        return own.path
    return tools.find("qemu10")


def tables(program: str | None = None) -> dict[str, dict[str, str]]:
    """The configuration, with QEMU `program` if it is given; skips the test where one of the two is missing."""
    program, daemon = program or qemu(), daemons.need("rust")
    if program is None:
        pytest.skip("no QEMU 8.2: python -m shim.tools --ensure qemu10")
    return {"hypervisor": {"path": program, "accelerator": "tcg"}, "share": {"daemon": daemon}}


def use(directory: Path, program: str | None = None) -> None:
    """Put it beside the configuration in `directory`."""
    lines = []
    for name, values in tables(program).items():
        lines += [f"[{name}]", *(f'{key} = "{value}"' for key, value in values.items())]
    (directory / "config.d").mkdir(exist_ok=True)
    (directory / "config.d/stack.toml").write_text("\n".join(lines) + "\n")
