"""shim/sandbox/volumes.py: which volumes a guest can have without a shared file system."""

from __future__ import annotations

import pytest

from shim.errors import Unsupported
from shim.oci import mounts
from shim.oci.spec import Mount, Spec
from shim.sandbox import volumes
from shim.sandbox.layers import Device


def planned(*given: Mount) -> list[volumes.Volume]:
    """The plan for a container with these mounts."""
    spec = Spec(oci_version="1.0.2", mounts=given)
    return volumes.plan(spec, mounts.plan(spec, "/bundle"))


def bind(source: str, destination: str, *options: str) -> Mount:
    """A bind mount."""
    return Mount(destination, source, "bind", ("rbind", *options))


def test_what_the_guest_has_itself_is_no_volume() -> None:
    """proc, tmpfs, binds of its own trees, the pod's shm."""
    own = (
        Mount("/proc", "proc", "proc"),
        Mount("/tmp", "tmpfs", "tmpfs"),
        bind("/dev/null", "/x"),
        bind("/pods/shm", "/dev/shm"),
    )
    assert planned(*own) == []


def test_read_only_binds_and_the_engines_files_are_copied() -> None:
    """Engines bind these writable, and nobody writes to them."""
    found = planned(bind("/secret", "/s", "ro"), bind("/b/hosts", "/etc/hosts", "rw"), bind("/log", "/dev/termination-log"))
    assert [(volume.at, volume.source) for volume in found] == [(0, "/secret"), (1, "/b/hosts"), (2, "/log")]


def test_a_writable_volume_is_refused_by_name() -> None:
    """With the mount, its source, and what would allow it."""
    with pytest.raises(Unsupported, match=r'volume /data: /srv/data: it is writable.*read-only.*shared_fs = "virtio-fs"'):
        planned(bind("/srv/data", "/data"))


def test_file_systems_on_devices_are_plugged() -> None:
    """By their type; their options are the guest's, "loop" is not."""
    found = planned(Mount("/data", "/dev/mapper/vol", "ext4", ("noatime",)), Mount("/img", "/i.erofs", "erofs", ("ro", "loop")))
    assert [volume.device for volume in found] == [
        Device("/dev/mapper/vol", "ext4", ("noatime",)),
        Device("/i.erofs", "erofs", ("ro",)),
    ]


def test_an_empty_dir_is_memory_of_the_guest() -> None:
    """One for all containers of the pod that name it; a directory in it is none."""
    kubelet = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir"
    assert [volume.empty for volume in planned(bind(f"{kubelet}/cache", "/c"))] == ["cache"]
    with pytest.raises(Unsupported):
        planned(bind(f"{kubelet}/cache/below", "/c"))
