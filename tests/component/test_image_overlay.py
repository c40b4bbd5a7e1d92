"""Overlay mounts of containers and the removal of what hostile containers leave, in a private mount
namespace.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import paths
from shim.errors import HakoError
from shim.image.erase import remove_tree
from tests.framework.netns import Namespace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run as root")


class Box:
    """A private mount namespace with a cache and an unpacked image."""

    def __init__(self, directory: Path) -> None:
        self.ns = Namespace(mounts=True)
        self.cache = directory / "cache"
        self.rootfs = directory / "image"
        (self.rootfs / "bin").mkdir(parents=True)
        (self.rootfs / "file").write_text("image's")
        self.rootfs.chmod(0o751)

    def overlay(self, expression: str) -> Any:
        """The value of an expression over the module `overlay`; an HakoError comes back as its text."""
        code = f"""
import json
from shim.errors import HakoError
from shim.image import overlay
try:
    print(json.dumps({expression}))
except HakoError as exc:
    print(json.dumps(type(exc).__name__ + ": " + str(exc)))
"""
        return self.ns.python(code, {"HAKO_CACHE_DIR": str(self.cache)})

    def mount(self, container: str) -> str:
        return str(self.overlay(f"overlay.mount({container!r}, {str(self.rootfs)!r})"))

    def sh(self, script: str) -> str:
        return self.ns.run("sh", "-c", script)

    def containers(self) -> list[str]:
        return sorted(path.name for path in (self.cache / "oci/containers").iterdir())


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.ns.close()


def test_what_is_mounted_is_known_by_its_path(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest may keep what it reads of it (shim/sandbox/ownfiles.py)."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(box.cache))
    assert paths.is_overlay(box.mount("c1"))
    assert not paths.is_overlay(str(box.rootfs))


def test_writes_stay_in_the_container(box: Box) -> None:
    """Two containers over one image see their own changes only, and the image stays as it was."""
    first, second = box.mount("c1"), box.mount("c2")
    box.sh(f"echo mine > {first}/file; rm -r {first}/bin; mkdir {first}/new")
    assert box.sh(f"cat {second}/file; echo; ls {second}").split() == ["image's", "bin", "file"]
    assert (box.rootfs / "file").read_text() == "image's" and (box.rootfs / "bin").is_dir()
    assert box.sh(f"ls {first}").split() == ["file", "new"]


def test_the_root_directory_keeps_its_mode(box: Box) -> None:
    """The merged root has the image's mode, which users other than root depend on."""
    assert box.sh(f"stat -c %a {box.mount('c1')}").strip() == "751"


def test_a_containers_devices_and_setuid_bits_mean_nothing_on_the_host(box: Box) -> None:
    """The host mounts it without devices and without setuid."""
    merged = box.mount("c1")
    box.sh(f"mknod {merged}/zero c 1 5")
    assert box.sh(f"head -c1 {merged}/zero 2>&1 || true").strip().endswith("Permission denied")
    assert "nosuid" in box.sh(f"grep {merged} /proc/self/mounts")


def test_unmount_deletes_and_may_be_repeated(box: Box) -> None:
    """After unmount mount and upper directory are gone; a second one is no error, nor one without a mount."""
    merged = box.mount("c1")
    box.sh(f"mkdir -p {merged}/a/b; touch {merged}/a/b/c")
    box.overlay("overlay.unmount('c1')")
    assert box.containers() == [] and merged not in box.sh("cat /proc/self/mounts")
    assert box.overlay("overlay.unmount('c1')") is None
    box.mount("c2")
    box.sh(f"busybox umount {box.cache}/oci/containers/c2/merged")
    box.overlay("overlay.unmount('c2')")
    assert box.containers() == []


def test_a_mount_in_use_is_taken_away_all_the_same(box: Box) -> None:
    """A process whose working directory is inside does not keep the container from being deleted."""
    merged = box.mount("c1")
    sitting = box.ns.popen("sh", "-c", f"cd {merged}/bin && echo in && exec sleep 60")
    assert sitting.stdout is not None and sitting.stdout.readline() == "in\n"
    try:
        assert box.overlay("overlay.unmount('c1')") is None
        assert box.containers() == []
    finally:
        sitting.kill()
        sitting.communicate()


def test_nothing_is_deleted_while_something_is_mounted_inside(box: Box, tmp_path: Path) -> None:
    """A mount that somebody made below the container's directory is named, and its content survives."""
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").write_text("x")
    box.mount("c1")
    upper = f"{box.cache}/oci/containers/c1/upper"
    box.sh(f"mkdir {upper}/trap; busybox mount --bind {treasure} {upper}/trap")
    assert f"still mounted: {upper}/trap" in box.overlay("overlay.unmount('c1')")
    assert (treasure / "gold").exists()
    box.sh(f"busybox umount {upper}/trap")
    box.overlay("overlay.unmount('c1')")
    assert box.containers() == []


def test_an_id_has_one_mount(box: Box) -> None:
    """A second mount for the same container is refused and leaves the first; ids cannot climb."""
    merged = box.mount("c1")
    assert box.mount("c1").startswith("AlreadyExists")
    assert box.sh(f"cat {merged}/file") == "image's"
    assert "not a usable id" in box.mount("../c2")


def test_a_failing_mount_leaves_nothing(box: Box) -> None:
    """An image that is not there is an error, and no directory stays."""
    answer = box.overlay("overlay.mount('c1', '/none')")
    assert answer.startswith("ImageError") and box.containers() == []


def test_sweep_takes_what_nobody_owns(box: Box) -> None:
    """After a crash or reboot the directories of containers that are not alive go, mounted or not."""
    box.mount("dead")
    box.mount("alive")
    (box.cache / "oci/containers/rebooted/upper").mkdir(parents=True)
    assert box.overlay("overlay.sweep(lambda id: id == 'alive')") == ["dead", "rebooted"]
    assert box.containers() == ["alive"]


def test_removal_stays_inside(tmp_path: Path) -> None:
    """Symbolic links are removed, not followed; names in any bytes, sockets, FIFOs and closed directories
    go.
    """
    outside = tmp_path / "outside"
    (outside / "d").mkdir(parents=True)
    (outside / "keep").write_text("x")
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/link").symlink_to(outside)
    (tree / "a/b/file-link").symlink_to(outside / "keep")
    os.mkfifo(tree / "a/fifo")
    (Path(os.fsdecode(os.fsencode(tree) + b"/\xff\xfe\n name"))).mkdir()
    (tree / "a/b").chmod(0)
    remove_tree(str(tree))
    assert not tree.exists() and sorted(path.name for path in outside.iterdir()) == ["d", "keep"]
    remove_tree(str(tree))  # may be repeated


def test_removal_does_not_follow_a_link_in_place_of_the_directory(tmp_path: Path) -> None:
    """A link where the directory was is an error; what it points to stays."""
    (tmp_path / "outside/keep").mkdir(parents=True)
    (tmp_path / "tree").symlink_to(tmp_path / "outside")
    with pytest.raises(HakoError):
        remove_tree(str(tmp_path / "tree"))
    assert (tmp_path / "outside/keep").is_dir()


def test_removal_of_a_tree_deeper_than_any_path() -> None:
    """Five thousand directories inside each other, with forks, go without recursion and without many
    descriptors.
    """
    tree = Path(tempfile.mkdtemp(dir="/dev/shm"))  # ext4 takes 3 ms per directory for this, and for rm -rf
    code = (
        f"import os; os.chdir({str(tree)!r})\n"
        "for n in range(5000):\n"
        "    os.mkdir('d'); open('f', 'w').close()\n"
        "    if n % 100 == 0: os.makedirs('e/f/g/h')\n"
        "    os.chdir('d')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    remove_tree(str(tree))
    assert not tree.exists()


def test_removal_stops_at_a_bind_mount_of_the_same_file_system(box: Box, tmp_path: Path) -> None:
    """What is mounted inside is not emptied, although its device number is the same."""
    (tmp_path / "treasure/deep").mkdir(parents=True)
    (tmp_path / "treasure/deep/gold").write_text("x")
    (tmp_path / "tree/in").mkdir(parents=True)
    assert stat.S_ISDIR((tmp_path / "tree/in").stat().st_mode)
    box.sh(f"busybox mount --bind {tmp_path}/treasure {tmp_path}/tree/in")
    code = f"""
from shim.errors import HakoError
from shim.image.erase import remove_tree
try:
    remove_tree({str(tmp_path / "tree")!r})
except HakoError as exc:
    print(__import__("json").dumps(str(exc)))
"""
    assert "mounted" in box.ns.python(code)
    assert (tmp_path / "treasure/deep/gold").read_text() == "x"
