"""shim/share/copies.py: small trees, whole or not at all."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from shim.errors import HakoError
from shim.share import copies


def test_a_tree_with_its_modes_and_links(tmp_path: Path) -> None:
    """As kubelet writes a config map: a directory of versions, and links through it."""
    (tmp_path / "..v1").mkdir(mode=0o750)
    (tmp_path / "..v1/key").write_text("value")
    (tmp_path / "..v1/key").chmod(0o640)
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "key").symlink_to("..data/key")
    found = {entry.path: entry for entry in copies.read(str(tmp_path), 1000)}
    assert list(found) == ["", "..data", "..v1", "..v1/key", "key"]
    assert found["..data"].data == b"..v1" and stat.S_ISLNK(found["..data"].mode)
    assert found["..v1/key"].data == b"value" and stat.S_IMODE(found["..v1/key"].mode) == 0o640
    assert found["..v1/key"].uid == os.getuid()


def test_a_link_at_the_top_is_followed_as_a_bind_does(tmp_path: Path) -> None:
    """Below it none is."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    assert [entry.data for entry in copies.read(str(tmp_path / "link"), 10)] == [b"x"]


@pytest.mark.parametrize("most", [7, 8])
def test_more_than_allowed_is_refused(tmp_path: Path, most: int) -> None:
    """All files together count; exactly as much is allowed."""
    (tmp_path / "a").write_text("1234")
    (tmp_path / "b").write_text("5678")
    if most == 8:
        assert len(copies.read(str(tmp_path), most)) == 3
        return
    with pytest.raises(copies.TooMuch, match="holds more than 7 bytes"):
        copies.read(str(tmp_path), most)


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty ones count too."""
    monkeypatch.setattr(copies, "MOST_ENTRIES", 3)
    for name in "abc":
        (tmp_path / name).touch()
    with pytest.raises(copies.TooMuch, match="3 files"):
        copies.read(str(tmp_path), 100)


def test_neither_sockets_nor_pipes(tmp_path: Path) -> None:
    """A pipe does not hold us up; the object is named."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(copies.NotCopied, match="pipe: is neither a file"):
        copies.read(str(tmp_path), 100)
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "sock"))
        with pytest.raises(copies.NotCopied, match="sock: is neither a file"):
            copies.read(str(tmp_path), 100)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    """With the kernel's word for it."""
    with pytest.raises(HakoError, match=r"copy into the guest: .*gone: No such file"):
        copies.read(str(tmp_path / "gone"), 100)
