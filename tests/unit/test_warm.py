"""The agent's rehearsal: its smallest program runs, its container has of everything something."""

from __future__ import annotations

import subprocess
from pathlib import Path

from agent import warm
from agent.api import jsonmap, oci_pb2


def test_the_program_is_one(tmp_path: Path) -> None:
    """A static ELF file that writes a line feed and ends with 0."""
    warm.make_rootfs(str(tmp_path / "root"))
    done = subprocess.run([str(tmp_path / "root/program")], capture_output=True, timeout=10, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\n", b"")
    warm.remove_tree(str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


def test_its_spec_has_something_of_everything() -> None:
    """Every part that costs time at its first use."""
    spec = oci_pb2.Spec()
    jsonmap.fill(spec, warm.spec_of("/root"))
    for name in ("Namespaces", "MaskedPaths", "ReadonlyPaths", "Seccomp", "Resources"):
        assert getattr(spec.Linux, name)
    assert {mount.type for mount in spec.Mounts} == {"proc", "tmpfs", "devpts", "bind", "mqueue", "sysfs", "cgroup"}
    assert "network" not in [namespace.Type for namespace in spec.Linux.Namespaces]
