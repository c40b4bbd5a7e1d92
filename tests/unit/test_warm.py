"""The agent's rehearsal: its smallest program runs, and a clone's vsock device is noticed when its driver has it."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

from agent import warm
from agent.api import jsonmap, oci_pb2
from agent.linux import uevent


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


def message(action: str, **words: str) -> bytes:
    """A uevent as the kernel sends it."""
    lines = [f"{action}@/devices/x", f"ACTION={action}", *(f"{key}={value}" for key, value in words.items()), "SEQNUM=1"]
    return b"".join(line.encode() + b"\0" for line in lines)


class Events:
    """In a netlink socket's place."""

    def __init__(self, *messages: tuple[bytes, int] | OSError) -> None:
        self.left = list(messages)

    def settimeout(self, _seconds: float | None) -> None:
        """As a socket's."""

    def recvfrom(self, _size: int) -> tuple[bytes, tuple[int, int]]:
        """The next one."""
        found = self.left.pop(0)
        if isinstance(found, OSError):
            raise found
        return found[0], (found[1], 1)


def await_driver(*messages: tuple[bytes, int] | OSError) -> tuple[bool, int]:
    """The answer, and how many messages it left."""
    events = uevent.Uevents.__new__(uevent.Uevents)
    events._socket = source = Events(*messages)  # type: ignore[assignment]
    return events.await_driver(warm.VSOCK_DRIVER), len(source.left)


def test_vsock_is_there_when_its_driver_has_taken_it() -> None:
    """Not when it was added, nor another device's driver, nor when a process says so; lost events are told."""
    name = warm.VSOCK_DRIVER.decode()
    before = [
        (message("add", SUBSYSTEM="virtio"), 0),
        (message("add", SUBSYSTEM="virtio", DRIVER=name), 0),
        (message("bind", SUBSYSTEM="virtio", DRIVER="virtiofs"), 0),
        (message("bind", SUBSYSTEM="virtio", DRIVER=name + "2"), 0),
        (message("bind", SUBSYSTEM="virtio", DRIVER=name), 4711),
    ]
    there = (message("bind", SUBSYSTEM="virtio", DRIVER=name), 0)
    assert await_driver(*before, there, there) == (True, 1)
    assert await_driver(*before, OSError(errno.ENOBUFS, "lost"), there) == (False, 1)


def test_after_lost_events_the_driver_is_looked_at(tmp_path: Path) -> None:
    """Whether it has a device."""
    driver = tmp_path / warm.VSOCK_DRIVER.decode()
    driver.mkdir()
    (driver / "module").mkdir()
    assert warm._is_bound(str(tmp_path)) is None
    (driver / "virtio5").mkdir()
    assert warm._is_bound(str(tmp_path)) is True
