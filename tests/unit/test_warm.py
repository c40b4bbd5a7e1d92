"""The agent's rehearsal: its smallest program runs, and a vsock device counts only when its driver is up."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent import warm
from agent.api import jsonmap, oci_pb2


def test_the_program_is_one(tmp_path: Path) -> None:
    """A static ELF file that writes a line feed and ends with 0."""
    warm.make_rootfs(str(tmp_path / "root"))
    done = subprocess.run([str(tmp_path / "root/program")], capture_output=True, timeout=10, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\n", b"")
    warm.remove_rootfs(str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


def test_its_spec_has_something_of_everything() -> None:
    """Every part that costs time at its first use."""
    spec = oci_pb2.Spec()
    jsonmap.fill(spec, warm.spec_of("/root"))
    for name in ("Namespaces", "MaskedPaths", "ReadonlyPaths", "Seccomp", "Resources"):
        assert getattr(spec.Linux, name)
    assert {mount.type for mount in spec.Mounts} == {"proc", "tmpfs", "devpts", "bind", "mqueue", "sysfs", "cgroup"}
    assert "network" not in [namespace.Type for namespace in spec.Linux.Namespaces]


@pytest.mark.parametrize(("status", "up"), [("0x00000000", None), ("0x0000000b", None), ("0x0000000f", True), ("", None)])
def test_vsock_is_up_when_its_driver_says_so(tmp_path: Path, status: str, up: bool | None) -> None:
    """The device is in the driver's directory before the driver has set it up (DRIVER_OK is 4)."""
    assert warm._vsock_is_up(str(tmp_path / "none")) is None
    (tmp_path / "module").mkdir()
    assert warm._vsock_is_up(str(tmp_path)) is None
    (tmp_path / "virtio5").mkdir()
    (tmp_path / "virtio5/status").write_text(status)
    assert warm._vsock_is_up(str(tmp_path)) is up
