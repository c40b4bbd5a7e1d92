"""What a guest keeps of the files that it has read: for good where nobody else writes to them, else for a second."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.hako import Hako
from tests.framework.ociimage import unpack

pytestmark = [
    pytest.mark.vm,
    pytest.mark.pods,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test"),
]
ASKED = 1.1  # seconds after which the guest asks again
SMALL = 100_000  # bytes: requests without a program of 2 MB


@pytest.fixture(autouse=True)
def tidy(hako: Hako) -> Iterator[None]:
    """What a failed test leaves must not fail the next one."""
    yield
    hako.remove_everything()


def _daemons(hako: Hako) -> list[tuple[int, str]]:
    """Those of pods; there may be one for a template that is being made."""
    return [(pid, command) for pid, command in hako.processes() if "virtiofsd" in command and f"{hako.state}/pods/" in command]


def _keeps(hako: Hako) -> bool:
    """Whether the only pod's virtiofsd lets the guest keep files for good; the C one is told so by "always" without a time."""
    (command,) = {command for _pid, command in _daemons(hako)}
    return "cache=always" in command and "timeout=1" not in command


def _read(hako: Hako) -> int:
    """Bytes that virtiofsd has read (proc(5), io)."""
    return sum(int(Path(f"/proc/{pid}/io").read_text().split()[1]) for pid, _command in _daemons(hako))


def test_a_container_by_itself_reads_its_program_once(hako: Hako) -> None:
    """However often it is executed."""
    name = hako.detached(hako.image, "sleep", "1000")
    assert _keeps(hako)
    hako.run("exec", name, "true", check=True)
    before = _read(hako)
    for _ in range(3):
        hako.run("exec", name, "true", check=True)
    assert _read(hako) - before < SMALL


def test_what_a_layer_had_open_is_not_kept(hako: Hako) -> None:
    """A file of the image that is written while it is open for reading: everybody sees the copy, and goes on to."""
    script = (
        "exec 3</etc/passwd 4</etc/group; cat /etc/passwd /etc/group >/dev/null; echo new >/etc/passwd; echo new >>/etc/group;"
        "cat <&3; tail -n 1 <&4; cat /etc/passwd; tail -n 1 /etc/group"
    )
    done = hako.run("run", "--rm", "--network", "none", hako.image, "sh", "-c", script)
    assert done.stdout.split() == ["new"] * 4, done.stderr


def test_with_a_volume_changes_on_the_host_are_seen(hako: Hako, tmp_path: Path) -> None:
    """In what is old and in what is new."""
    (tmp_path / "old").write_text("old\n")
    name = hako.detached("-v", f"{tmp_path}:/volume", hako.image, "sleep", "1000")
    assert not _keeps(hako)
    _changes_are_seen(hako, name, tmp_path, "/volume")


def test_in_a_directory_that_was_there_changes_on_the_host_are_seen(hako: Hako, tmp_path: Path) -> None:
    """It is used as it is, by whoever else uses it."""
    root = unpack(tmp_path / "root")
    (root / "old").write_text("old\n")
    name = hako.detached("--rootfs", str(root), "sleep", "1000")
    assert not _keeps(hako)
    _changes_are_seen(hako, name, root, "")


def _changes_are_seen(hako: Hako, name: str, directory: Path, inside: str) -> None:
    script = f"cat {inside}/old {inside}/new; ls {inside}/ | grep -E '^(old|new)$'"
    assert _said(hako, name, script) == ["old", "old"]
    (directory / "old").write_text("other\n")
    (directory / "new").write_text("new\n")
    time.sleep(ASKED)
    assert _said(hako, name, script) == ["other", "new", "new", "old"]
    (directory / "moved").write_text("moved\n")
    (directory / "moved").rename(directory / "old")
    time.sleep(ASKED)
    assert _said(hako, name, script) == ["moved", "new", "new", "old"]


def _said(hako: Hako, name: str, script: str) -> list[str]:
    return hako.run("exec", name, "sh", "-c", script).stdout.split()


def test_what_is_asked_for_by_name_is_in_force(hako: Hako, tmp_path: Path) -> None:
    """Either way."""
    for cache, words in (("auto", ()), ("always", ("-v", f"{tmp_path}:/volume"))):
        drop_in = hako.directory / "config.d/cache.toml"
        drop_in.parent.mkdir(exist_ok=True)
        drop_in.write_text(f'[share]\ncache = "{cache}"\n')
        try:
            hako.detached(*words, hako.image, "sleep", "1000")
            assert _keeps(hako) is (cache == "always")
            hako.remove_everything()
        finally:
            drop_in.unlink()
