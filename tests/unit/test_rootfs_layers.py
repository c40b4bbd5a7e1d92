"""shim/sandbox/layers.py: what a root filesystem is made of, from mounts alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim.sandbox import layers
from shim.sandbox.layers import Device, Layers
from shim.sandbox.rootfs import RootfsMount


def overlay(*options: str) -> RootfsMount:
    """A mount as containerd's overlayfs snapshotter asks for it."""
    return RootfsMount("overlay", "overlay", options)


@pytest.mark.parametrize(
    ("mount", "found"),
    [
        (RootfsMount("ext4", "/dev/mapper/snap-1", ("discard", "rw")), Device("/dev/mapper/snap-1", "ext4", ("discard", "rw"))),
        (RootfsMount("ext4", "/snapshots/3", ("loop", "rw")), Device("/snapshots/3", "ext4", ("rw",))),
        (RootfsMount("erofs", "/snapshots/layer.erofs", ("ro", "loop")), Device("/snapshots/layer.erofs", "erofs", ("ro",))),
        (RootfsMount("bind", "/dev/vda", ("rbind", "rw")), None),
        (overlay("lowerdir=/a"), None),
        (RootfsMount("ext4", "/x", (), "etc"), None),
    ],
)
def test_the_type_alone_makes_a_disk(mount: RootfsMount, found: Device | None) -> None:
    """A bind of a block device is none: an image without layers must not become the host's disk (CVE-2026-24054)."""
    assert layers.device([mount]) == found


def test_several_mounts_are_no_disk() -> None:
    """Nor is none at all."""
    assert layers.device([]) is None
    assert layers.device([RootfsMount("ext4", "/a", ()), overlay("lowerdir=/b")]) is None


def test_who_may_write_to_a_disk() -> None:
    """erofs never, others unless they are mounted read-only."""
    assert Device("/i", "erofs", ()).read_only and Device("/i", "ext4", ("ro",)).read_only
    assert not Device("/i", "ext4", ("rw", "discard")).read_only


def test_an_overlays_options() -> None:
    """What it shows, and where it is written to; what concerns writing only is left out."""
    found = layers.of_options(["index=off", "userxattr", "workdir=/w", "upperdir=/u", "lowerdir=/2:/1", "volatile"])
    assert found == Layers(("/2", "/1"), "/u", ("userxattr",))
    assert layers.of_options(["lowerdir=/only"]) == Layers(("/only",))


@pytest.mark.parametrize("lower", ["lowerdir=a:b", r"lowerdir=/with\:colon", "lowerdir+=/a", "lowerdir=/a::/data"])
def test_what_cannot_be_read_is_unknown(lower: str) -> None:
    """Relative and escaped names, data-only layers: nothing is kept under their names."""
    assert layers.of_options([lower, "upperdir=/u"]) == Layers((), "/u")


def test_the_overlay_on_top_counts() -> None:
    """The last mount at a point hides those before it (proc(5))."""
    table = (
        "30 1 8:1 / / rw - ext4 /dev/sda rw\n"
        "31 30 0:40 / /r rw,nodev shared:1 - overlay overlay rw,lowerdir=/a,upperdir=/b\n"
        "32 30 0:41 / /r/x rw - overlay overlay rw,lowerdir=/c\n"
    )
    assert layers.overlay_at("/r", table) == ("rw", "lowerdir=/a", "upperdir=/b")
    assert layers.overlay_at("/r", table + "33 31 0:42 / /r rw - tmpfs tmpfs rw\n") == ()
    assert layers.overlay_at("/none", table) == ()


def test_a_key_names_what_is_below(tmp_path: Path) -> None:
    """The same for the same layers, another for others; none for what was written to or may be."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    lower.mkdir()
    upper.mkdir()
    found = Layers((str(lower),), str(upper))
    key = layers.key(found)
    assert key and key == layers.key(found._replace(upper=""))
    assert layers.key(found._replace(others=("userxattr",))) != key
    (upper / "written").touch()
    assert layers.key(found) == "" and layers.is_written(found)
    (lower / "changed").touch()
    assert layers.key(found._replace(upper="")) not in ("", key)
    assert layers.key(Layers()) == ""


def test_a_layer_that_is_a_mount_point_of_no_image_file_has_no_key() -> None:
    """Its inode and times are those of what is mounted, which may be the same for two images."""
    assert os.path.ismount("/proc") and layers.key(Layers(("/proc",))) == ""
