"""agent/storage with the real kernel, in a mount namespace of its own."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from agent import storage
from agent.api import agent_pb2, types_pb2
from agent.errors import StepError
from agent.guest import copyfile
from agent.linux import procfs, syscalls
from tests.framework import forked

Result = TypeVar("Result")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount namespace")


def in_namespace(function: Callable[[], Result]) -> Result:
    """`function()` in a child whose mounts nobody else sees."""

    def child() -> Result:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
        return function()

    return forked.run(child)


def mounted(point: Path) -> procfs.Mount | None:
    """The topmost mount at `point`."""
    return next((m for m in reversed(procfs.mounts()) if m.point == str(point)), None)


def on_tmpfs(path: Path) -> bool:
    """Whether the machine's own file system is one."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return syscalls.filesystem_type(fd) == copyfile.TMPFS_MAGIC
    finally:
        os.close(fd)


def make(point: Path, driver: str, **fields: Any) -> str:
    """Mount one storage."""
    return storage.mount(agent_pb2.Storage(driver=driver, mount_point=str(point), **fields), 1)


def test_ephemeral_is_a_tmpfs_of_its_size_mode_and_group(tmp_path: Path) -> None:
    """size and mode are the file system's, flags are the mount's, fsgid is the directory's group with
    setgid.
    """
    point = tmp_path / "ephemeral" / "cache"

    def act() -> tuple[Any, ...]:
        options = ["noexec", "nosuid", "nodev", "mode=0777", "size=1048576", "fsgid=4321"]
        make(point, "ephemeral", source="tmpfs", fstype="tmpfs", options=options)
        found, info, space = mounted(point), os.stat(point), os.statvfs(point)
        assert found is not None
        return (
            found.fstype,
            found.options,
            info.st_gid,
            stat.S_IMODE(info.st_mode),
            space.f_blocks * space.f_frsize,
        )

    fstype, options, gid, mode, size = in_namespace(act)
    assert (fstype, gid, size) == ("tmpfs", 4321, 1 << 20)
    assert mode == 0o2777
    assert {"noexec", "nosuid", "nodev", "rw"} <= set(options.split(","))


def test_update_changes_the_size_and_keeps_the_content(tmp_path: Path) -> None:
    """UpdateEphemeralMounts grows a tmpfs in place."""
    point = tmp_path / "cache"

    def act() -> tuple[int, str]:
        make(point, "ephemeral", source="tmpfs", fstype="tmpfs", options=["size=1M"])
        (point / "kept").write_text("data")
        bigger = agent_pb2.Storage(driver="ephemeral", mount_point=str(point), options=["size=8M"])
        other = agent_pb2.Storage(driver="local", mount_point="/nonexistent")
        storage.update([bigger, other])
        space = os.statvfs(point)
        return space.f_blocks * space.f_frsize, (point / "kept").read_text()

    assert in_namespace(act) == (8 << 20, "data")


def test_local_is_a_directory_with_its_mode(tmp_path: Path) -> None:
    """No mount: a directory, writable for the group if one is given."""
    point = tmp_path / "a" / "b"

    def act() -> tuple[int, int, bool]:
        make(point, "local", source="local", fstype="local", options=["mode=0750", "fsgid=77"])
        info = os.stat(point)
        return stat.S_IMODE(info.st_mode), info.st_gid, mounted(point) is None

    assert in_namespace(act) == (0o2770, 77, True)


def test_bind_is_read_only_from_the_first_moment(tmp_path: Path) -> None:
    """A bind of a directory or a file, with the options that concern the mount."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("data")

    def act() -> tuple[str, str, bool]:
        make(tmp_path / "dir", "bind", source=str(tmp_path / "source"), options=["rbind", "ro", "nosuid"])
        make(tmp_path / "f" / "one", "", source=str(tmp_path / "source" / "file"), options=["bind"])
        writable = True
        try:
            (tmp_path / "dir" / "new").write_text("x")
        except OSError:
            writable = False
        found = mounted(tmp_path / "dir")
        return (tmp_path / "f" / "one").read_text(), found.options if found else "", writable

    text, options, writable = in_namespace(act)
    assert (text, writable) == ("data", False)
    assert "nosuid" in options.split(",")


def test_overlay_puts_layers_together_and_makes_its_directories(tmp_path: Path) -> None:
    """Upper and work directories are made as the driver's options say."""
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower" / "base").write_text("base")
    point, scratch = tmp_path / "merged", tmp_path / "scratch"

    def act() -> tuple[list[str], list[str]]:
        # Overlay wants an upper layer that is not an overlay itself.
        make(scratch, "ephemeral", source="tmpfs", fstype="tmpfs")
        prefix = "io.katacontainers.volume.overlayfs.create_directory="
        layers = [f"lowerdir={tmp_path}/lower", f"upperdir={scratch}/up/er", f"workdir={scratch}/work"]
        make(point, "overlayfs", source="overlay", fstype="overlay", options=layers,
             driver_options=[f"{prefix}{scratch}/up/er", f"{prefix}{scratch}/work"])  # fmt: skip
        (point / "new").write_text("x")
        return sorted(os.listdir(point)), os.listdir(scratch / "up" / "er")

    assert in_namespace(act) == (["base", "new"], ["new"])


def test_a_new_upper_directory_looks_like_the_layer_below(tmp_path: Path) -> None:
    """The merged root has its owner and mode; one that was there before keeps its own."""
    for name in ("lower", "old"):
        (tmp_path / name).mkdir()
    os.chown(tmp_path / "lower", 12, 34)
    (tmp_path / "lower").chmod(0o1750)
    prefix = "io.katacontainers.volume.overlayfs.create_directory="

    def root_of(upper: Path, scratch: Path) -> tuple[int, int, int]:
        point = scratch / "merged"
        layers = [f"lowerdir={tmp_path}/lower", f"upperdir={upper}", f"workdir={scratch}/work"]
        make(point, "overlayfs", source="overlay", fstype="overlay", options=layers,
             driver_options=[f"{prefix}{upper}", f"{prefix}{scratch}/work"])  # fmt: skip
        info = os.stat(point)
        return info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)

    def act() -> list[tuple[int, int, int]]:
        scratch = tmp_path / "scratch"
        make(scratch, "ephemeral", source="tmpfs", fstype="tmpfs")
        (scratch / "a").mkdir()
        (scratch / "b/used").mkdir(parents=True)
        (scratch / "b/used/file").touch()
        (scratch / "b/used").chmod(0o711)
        return [root_of(scratch / "a/new", scratch / "a"), root_of(scratch / "b/used", scratch / "b")]

    assert in_namespace(act) == [(12, 34, 0o1750), (0, 0, 0o711)]


def test_copies_for_a_container_go_with_it(tmp_path: Path) -> None:
    """From memory of the guest, through no symbolic link; what is shared from the host is left alone."""
    base, outside = tmp_path / "shared", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()

    def act() -> tuple[list[str], list[str]]:
        for memory in (False, True):
            if memory:
                make(base, "ephemeral", source="tmpfs", fstype="tmpfs")
            (base / "c1/2").mkdir(parents=True)
            (base / "c1/2/link").symlink_to(outside)
            (base / "c2").mkdir()
            copyfile.forget("c1", str(base))
            copyfile.forget("never", str(base))
            if not memory:
                kept = sorted(os.listdir(base))
        return kept, os.listdir(base)

    assert in_namespace(act) == ((["c1", "c2"], ["c2"]) if not on_tmpfs(tmp_path) else (["c2"], ["c2"]))
    assert (outside / "file").exists()


def test_unmount_takes_the_mount_and_its_directory(tmp_path: Path) -> None:
    """What was mounted goes, once; what is no mount point stays."""
    point = tmp_path / "cache"
    (tmp_path / "plain").mkdir()

    def act() -> tuple[bool, bool, bool, bool]:
        make(point, "ephemeral", source="tmpfs", fstype="tmpfs")
        (point / "file").write_text("x")
        first, second = storage.unmount(str(point)), storage.unmount(str(point))
        return first, second, point.exists(), storage.unmount(str(tmp_path / "plain"))

    assert in_namespace(act) == (True, False, False, False)
    assert (tmp_path / "plain").exists()


def test_a_failing_storage_takes_the_others_back(tmp_path: Path) -> None:
    """mount_all leaves all or nothing."""
    good, bad = tmp_path / "good", tmp_path / "bad"

    def act() -> tuple[str, bool]:
        storages = [
            agent_pb2.Storage(driver="ephemeral", fstype="tmpfs", mount_point=str(good)),
            agent_pb2.Storage(driver="ephemeral", fstype="nofs", mount_point=str(bad)),
        ]
        try:
            storage.mount_all(storages, 0)
        except StepError as error:
            return str(error), mounted(good) is None
        return "", False

    text, clean = in_namespace(act)
    assert clean
    assert str(bad) in text


def test_planted_links_lead_no_mount_astray(tmp_path: Path) -> None:
    """A container that exchanges a directory of its tree for a link gets nothing mounted or made elsewhere.
    """
    (tmp_path / "elsewhere" / "mnt").mkdir(parents=True)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "elsewhere")

    def act() -> tuple[list[bool], list[str]]:
        refused = []
        for driver, point in (("ephemeral", "link/mnt"), ("local", "link/new"), ("ephemeral", "link")):
            try:
                make(tmp_path / "tree" / point, driver, source="tmpfs", fstype="tmpfs")
                refused.append(False)
            except StepError:
                refused.append(True)
        below = [m.point for m in procfs.mounts() if m.point.startswith(str(tmp_path))]
        return refused, below

    assert in_namespace(act) == ([True, True, True], [])
    assert os.listdir(tmp_path / "elsewhere") == ["mnt"]


@pytest.mark.parametrize("path", ["volume", "link/victim"])
def test_unmount_through_a_planted_link_hits_nothing(tmp_path: Path, path: str) -> None:
    """CVE-2020-2024's idea: the path of a volume, or a directory on its way, suddenly leads to another
    mount.
    """
    victim, tree = tmp_path / "real" / "victim", tmp_path / "tree"
    tree.mkdir()

    def act() -> bool:
        make(victim, "ephemeral", source="tmpfs", fstype="tmpfs")
        (tree / "volume").symlink_to(victim)
        (tree / "link").symlink_to(victim.parent)
        try:
            storage.unmount(str(tree / path))
        except StepError:
            pass
        return mounted(victim) is not None

    assert in_namespace(act)


def test_bind_source_through_a_planted_link_is_refused(tmp_path: Path) -> None:
    """A container cannot have something of the guest mounted by a link in its own tree."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)

    def act() -> bool:
        try:
            make(tmp_path / "point", "bind", source=str(tmp_path / "link" / "secret"), options=["bind"])
        except StepError:
            return mounted(tmp_path / "point") is None
        return False

    assert in_namespace(act)


def test_group_of_a_volume(tmp_path: Path) -> None:
    """fsGroup: group, group rights and set-group-id below, links themselves only; OnRootMismatch stops
    early.
    """
    point = tmp_path / "volume"
    outside = tmp_path / "outside"
    outside.write_text("x")
    outside.chmod(0o600)

    def fill() -> None:
        (point / "a").mkdir(mode=0o700)
        (point / "a" / "file").write_text("x")
        (point / "a" / "file").chmod(0o600)
        (point / "link").symlink_to(outside)

    def act() -> list[Any]:
        (tmp_path / "source").mkdir()
        os.rename(tmp_path / "source", point)
        fill()
        group = agent_pb2.FSGroup(group_id=555, group_change_policy=types_pb2.Always)
        make(point, "bind", source=str(point), options=["bind"], fs_group=group)
        seen = [
            (info.st_gid, stat.S_IMODE(info.st_mode))
            for info in map(os.stat, (point, point / "a", point / "a" / "file", outside))
        ]
        (point / "a" / "file").chmod(0o600)
        group.group_change_policy = types_pb2.OnRootMismatch
        make(point, "bind", source=str(point), options=["bind"], fs_group=group)
        return [*seen, stat.S_IMODE(os.stat(point / "a" / "file").st_mode), os.lstat(point / "link").st_gid]

    top, below, file, victim, kept, link = in_namespace(act)
    assert top[0] == below[0] == file[0] == link == 555
    assert below[1] == 0o2770
    assert (file[1], kept) == (0o660, 0o600)
    assert victim == (0, 0o600)


def test_block_device_is_mounted_by_name(tmp_path: Path) -> None:
    """A file system on a disk, read-only, through the driver for predicted names."""
    image, content = tmp_path / "disk.erofs", tmp_path / "content"
    content.mkdir()
    (content / "hello").write_text("from the disk")
    subprocess.run(["mkfs.erofs", str(image), str(content)], check=True, capture_output=True)
    attach = subprocess.run(["losetup", "--find", "--show", "-r", str(image)], capture_output=True, text=True)
    if attach.returncode != 0:
        pytest.skip(f"no loop device: {attach.stderr.strip()}")
    device = attach.stdout.strip()

    def act() -> str:
        make(tmp_path / "point", "mmioblk", source=device, fstype="erofs", options=["ro"])
        return (tmp_path / "point" / "hello").read_text()

    try:
        assert in_namespace(act) == "from the disk"
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
