"""The agent's rehearsal: its smallest program runs, its container has of everything something."""

from __future__ import annotations

import subprocess
from pathlib import Path

from agent import sampleprogram, samplespec, warm
from agent.api import jsonmap, oci_pb2
from agent.linux.syscall_numbers import X86_64


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
    jsonmap.fill(spec, samplespec.spec_of("/root"))
    for name in ("Namespaces", "MaskedPaths", "ReadonlyPaths", "Seccomp", "Resources"):
        assert getattr(spec.Linux, name)
    assert {mount.type for mount in spec.Mounts} == {"proc", "tmpfs", "devpts", "bind", "mqueue", "sysfs", "cgroup"}
    assert "network" not in [namespace.Type for namespace in spec.Linux.Namespaces]


def test_the_program_makes_each_of_its_calls(tmp_path: Path) -> None:
    """Those that it names and no others, so that the container's filter lets it run; refused ones do not stop it."""
    program = tmp_path / "program"
    program.write_bytes(sampleprogram.image())
    program.chmod(0o755)
    code = sampleprogram.image()
    called = {number for number in range(512) if b"\x48\xb8" + number.to_bytes(8, "little") + b"\x0f\x05" in code}
    assert called == set(sampleprogram.NUMBERS.values())
    assert {name: X86_64[name] for name in sampleprogram.NUMBERS} == sampleprogram.NUMBERS
    no_heap = ["prlimit", "--data=49152", str(program)]
    done = subprocess.run(no_heap, capture_output=True, timeout=10, check=False)
    assert (done.returncode, done.stdout) == (0, b"\n")
