"""A hostile guest and its share: nothing outside of its own files is read, written or followed (kata.md 6)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from shim import process
from shim.config import HypervisorConfig, ShareConfig
from shim.hypervisor.base import Share
from shim.hypervisor.qemu.driver import Qemu, QemuVm
from shim.process import Confinement
from shim.share import virtiofsd
from shim.share.tree import TAG, ShareTree, mounts_below
from tests.framework import bareguest, daemons, vm

SCRIPT = Path(__file__).with_name("share_attacks.py")
ATTACKS = [
    line.removeprefix("def attack_").partition("(")[0]
    for line in SCRIPT.read_text().splitlines()
    if line.startswith("def attack_")
]

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hostile guest."""
    lacking = bareguest.missing() or vm.missing()
    if lacking:
        pytest.skip(lacking)
    directory = tmp_path_factory.mktemp("hostile")
    bareguest.tree(directory / "root", SCRIPT)
    return bareguest.initramfs(directory / "root", directory / "initrd")


class Attacked:
    """A share with a root and a read-only volume, the guest that attacked it, and what it said."""

    def __init__(self, directory: Path, initrd: Path, daemon: str) -> None:
        self.directory = directory
        for name in ("root", "volume/sub"):
            (directory / name).mkdir(parents=True)
        (directory / "volume/file").write_text("precious")
        with ExitStack() as undo:
            self._boot(initrd, daemon, undo)
            self.close = undo.pop_all().close

    def _boot(self, initrd: Path, daemon: str, undo: ExitStack) -> None:
        self.tree = ShareTree(str(self.directory / "share"))
        undo.callback(self.tree.close)
        self.tree.add_rootfs("c1", str(self.directory / "root"), readonly=False)
        self.tree.add_volume("c1", 0, str(self.directory / "volume"), readonly=True)
        fs = virtiofsd.start(self.tree.directory, ShareConfig(daemon=daemon), Confinement())
        undo.callback(fs.child.close)
        undo.callback(fs.child.terminate, 0)
        spec = vm.spec("hako-hostile")._replace(image=None, initrd=str(initrd), memory_mib=512)
        self.vm: QemuVm = Qemu(HypervisorConfig()).launch(spec._replace(share=Share(fs.vm_fd, TAG)))
        undo.callback(self.vm.stop, 0)
        os.close(fs.vm_fd)
        self.vm.wait_ready(90)
        self.checks = self._listen(90)

    def _listen(self, seconds: float) -> dict[str, str]:
        end = time.monotonic() + seconds
        while "CHECK all ok" not in self.vm.console_tail() and time.monotonic() < end:
            time.sleep(0.05)
        words = [line.strip().split(" ", 2) for line in self.vm.console_tail().splitlines()]
        return {parts[1]: parts[2] for parts in words if len(parts) == 3 and parts[0] == "CHECK"}


@pytest.fixture(scope="module", params=daemons.KINDS)
def attacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, initrd: Path) -> Iterator[Attacked]:
    """A guest that has done its worst, still running."""
    made = Attacked(tmp_path_factory.mktemp("pod"), initrd, daemons.need(request.param))
    yield made
    made.close()
    assert mounts_below(str(made.directory)) == []


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_fails(attacked: Attacked, attack: str) -> None:
    """Each attempt is refused by the host, whatever the guest's kernel thinks."""
    assert attacked.checks.get(attack) == "ok", attacked.vm.console_tail()


def test_volume_is_untouched(attacked: Attacked) -> None:
    """A read-only volume has on the host what it had before."""
    volume = attacked.directory / "volume"
    assert sorted(os.listdir(volume)) == ["file", "sub"]
    assert os.listdir(volume / "sub") == []
    assert (volume / "file").read_text() == "precious"


def test_share_itself_is_as_we_made_it(attacked: Attacked) -> None:
    """The guest has added nothing between the mounts."""
    share = attacked.directory / "share"
    assert os.listdir(share) == ["c1"]
    assert sorted(os.listdir(share / "c1")) == ["0", "rootfs"]


def test_traps_do_no_harm(attacked: Attacked) -> None:
    """Device nodes and set-id files are dead on the host's side of the share."""
    root = attacked.directory / "share/c1/rootfs"
    with pytest.raises(PermissionError):
        (root / "node").open()
    options = process.run(["findmnt", "-no", "OPTIONS", str(root)], timeout=10).decode()
    assert {"nosuid", "nodev"} <= set(options.strip().split(","))


def test_more_can_be_shared_after_the_attack(attacked: Attacked) -> None:
    """Another container joins the same share; its mount points are made where we say."""
    (attacked.directory / "second").mkdir(exist_ok=True)
    attacked.tree.add_rootfs("c2", str(attacked.directory / "second"), readonly=False)
    assert os.listdir(attacked.directory / "share/c2") == ["rootfs"]
    attacked.tree.remove("c2")
    assert os.listdir(attacked.directory / "share") == ["c1"]


def test_share_is_taken_from_a_living_guest(attacked: Attacked) -> None:
    """Removal follows no link and waits for no open file; the host's mounts are what they were
    (CVE-2020-2024).
    """
    below = str(attacked.directory)
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if below not in line]
    attacked.tree.remove("c1")
    assert mounts_below(f"{below}/share/c1") == []
    assert os.listdir(attacked.directory / "share") == []
    after = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if below not in line]
    assert {line.split()[4] for line in after} >= {line.split()[4] for line in mounts}
    assert (attacked.directory / "root/held").read_text() == "x"
