"""Containers in a real guest kernel; the checks are in container_checks.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.framework import bareguest, box, checks
from tests.framework.bareguest import Run

SCRIPT = Path(__file__).with_name("container_checks.py")

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's file tree, with what the script needs of the tests' own code."""
    lacking = bareguest.missing()
    if lacking:
        pytest.skip(lacking)
    tree = tmp_path_factory.mktemp("guest") / "root"
    bareguest.tree(tree, SCRIPT, box, checks)
    return tree


@pytest.fixture(scope="module")
def erofs_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A boot like ours: read-only erofs root on virtio-blk."""
    directory = tmp_path_factory.mktemp("erofs")
    image = bareguest.erofs(root, directory / "root.erofs")
    options = ["-drive", f"if=virtio,file={image},format=raw,readonly=on"]
    cmdline = "root=/dev/vda ro rootfstype=erofs init=/init mitigations=off rcupdate.rcu_expedited=1"
    return bareguest.boot(bareguest.need_kernel(), options, cmdline, directory, {})


@pytest.fixture(scope="module")
def initramfs_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A boot from an initramfs, as with the stock kernel."""
    directory = tmp_path_factory.mktemp("initramfs")
    archive = bareguest.initramfs(root, directory / "root.cpio")
    cmdline = "rdinit=/init checks.skip=warm_start_is_fast,fifty_megabytes_each_way mitigations=off"
    return bareguest.boot(bareguest.need_kernel(), ["-initrd", str(archive)], cmdline, directory, {})


def judge(run: Run, name: str) -> None:
    """Fail with the guest's own words."""
    outcome = run.checks.get(name, "was not reached")
    assert outcome.startswith("ok"), f"{name}: {outcome}\nconsole ends:\n{run.console[-3000:]}"


@pytest.mark.parametrize("name", checks.names(SCRIPT))
def test_containers_in_a_guest_with_a_read_only_root(erofs_run: Run, name: str) -> None:
    """Each check of container_checks.py holds in a guest that boots as ours do."""
    judge(erofs_run, name)


@pytest.mark.parametrize(
    "name", ["on_the_first_root", "plain_container", "user_namespace", "nothing_is_left"]
)
def test_containers_in_a_guest_on_an_initramfs(initramfs_run: Run, name: str) -> None:
    """On the kernel's first root, before init has left it and afterwards."""
    judge(initramfs_run, name)


def test_timings_are_told(erofs_run: Run, record_property: Callable[[str, object], None]) -> None:
    """The measured times reach the report."""
    lines = [line for line in erofs_run.console.splitlines() if line.startswith("TIMING ")]
    record_property("timings", lines)
    assert len(lines) == 2
