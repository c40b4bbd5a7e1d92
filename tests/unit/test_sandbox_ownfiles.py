"""Whose a container's files are: what its guest may keep depends on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shim.oci import spec as oci
from shim.sandbox import ownfiles
from shim.sandbox.rootfs import RootfsMount

OVERLAY = RootfsMount("overlay", "overlay", ("lowerdir=/l", "upperdir=/u", "workdir=/w"))
PROC = {"destination": "/proc", "type": "proc", "source": "proc"}


def _spec(root: str = "rootfs", *mounts: dict[str, Any]) -> oci.Spec:
    spec = {"ociVersion": "1.2.0", "root": {"path": root}, "mounts": [PROC, *mounts], "linux": {}}
    return oci.parse(json.dumps(spec))


def _bind(source: str, **changes: Any) -> dict[str, Any]:
    return {"destination": "/mnt", "type": "bind", "source": source, "options": ["rbind", "ro"], **changes}


@pytest.mark.parametrize(
    ("rootfs", "own"),
    [
        (None, True),
        ((), False),
        ((OVERLAY,), True),
        ((RootfsMount("ext4", "/dev/mapper/snap", ()),), True),
        ((RootfsMount("bind", "/srv/tree", ("rbind",)),), False),
        ((RootfsMount("nfs", "server:/tree", ()),), False),
        ((OVERLAY, RootfsMount("bind", "/srv", ("rbind",), "srv")), False),
    ],
)
def test_a_root_that_was_mounted_for_it_is_its_own(rootfs: tuple[RootfsMount, ...] | None, own: bool) -> None:
    """An overlay, a disk, or what nobody has named yet; not a directory, nor one that is bound in."""
    assert ownfiles.are_own(_spec(), "/bundle", rootfs) is own


def test_a_directory_of_somebody_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But the one that `hako run` made of an image is; what the engine mounts counts more than the path in the spec."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path))
    for rootfs in (None, ()):
        assert not ownfiles.are_own(_spec("/var/lib/docker/overlay2/1/merged"), "/bundle", rootfs)
        assert not ownfiles.are_own(_spec(f"{tmp_path}/oci/containers/web/upper"), "/bundle", rootfs)
        assert not ownfiles.are_own(_spec(f"{tmp_path}/oci/containers/web/upper/merged"), "/bundle", rootfs)
        assert ownfiles.are_own(_spec(f"{tmp_path}/oci/containers/web/merged"), "/bundle", rootfs)
    assert ownfiles.are_own(_spec("/bundle/rootfs"), "/bundle", (OVERLAY,))


@pytest.mark.parametrize(
    ("mount", "own"),
    [
        (_bind("/bundle/hosts"), True),
        (_bind("hosts"), True),
        (_bind("/dev/shm/pod", destination="/dev/shm"), True),
        (_bind("/sys/fs/cgroup"), True),
        (_bind("/etc/hosts"), False),
        (_bind("/bundle-of-another/hosts"), False),
        (_bind("/bundle/../etc/hosts"), False),
        (_bind("/bundle"), False),
    ],
)
def test_a_volume_is_not_unless_it_lies_in_the_bundle(mount: dict[str, Any], own: bool) -> None:
    """Mounts that share nothing do not count."""
    assert ownfiles.are_own(_spec("rootfs", mount), "/bundle/", (OVERLAY,)) is own


@pytest.mark.parametrize(
    ("annotations", "alone"),
    [
        ({}, True),
        ({"org.opencontainers.image.stopSignal": "9"}, True),
        ({"io.containerd.runc.v2.group": "pod"}, False),
        ({"io.kubernetes.cri.sandbox-id": "pod"}, False),
        ({"io.kubernetes.cri.container-type": "sandbox"}, False),
        ({"io.kubernetes.cri-o.ContainerType": "sandbox"}, False),
    ],
)
def test_a_pod_that_others_may_join(annotations: dict[str, str], alone: bool) -> None:
    """Said by the engine, in whatever way."""
    assert ownfiles.is_alone(annotations) is alone
