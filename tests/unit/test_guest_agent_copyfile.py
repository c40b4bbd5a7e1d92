"""agent/guest/copyfile.py: files from the host, in a tree that a container may have prepared against us."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from agent.api import agent_pb2
from agent.errors import InvalidSpec, StepError
from agent.guest import copyfile


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The shared directory, with something outside of it."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "outside").mkdir()
    return shared


def copy(base: Path, path: str, data: bytes = b"", **more: Any) -> None:
    """One CopyFile request."""
    fields: dict[str, Any] = {
        "file_mode": stat.S_IFREG | 0o640,
        "file_size": len(data),
        "uid": os.getuid(),
        "gid": os.getgid(),
        **more,
    }
    path = path if path.startswith("/") else f"{base}/{path}"
    copyfile.copy(agent_pb2.CopyFileRequest(path=path, data=data, **fields), str(base))


def test_file_appears_when_it_is_complete(base: Path) -> None:
    """The name shows only the whole file, with its mode; parents get the directory mode."""
    copy(base, "a/b/file", b"12345", file_size=8, dir_mode=0o711)
    assert not (base / "a/b/file").exists()
    copy(base, "a/b/file", b"678", file_size=8, offset=5)
    assert (base / "a/b/file").read_bytes() == b"12345678"
    assert stat.S_IMODE((base / "a/b/file").stat().st_mode) == 0o640
    assert stat.S_IMODE((base / "a").stat().st_mode) == 0o711
    assert os.listdir(base / "a/b") == ["file"]


def test_file_is_replaced_as_a_whole(base: Path) -> None:
    """A shorter new version leaves nothing of the old one; a retried first piece starts again."""
    copy(base, "file", b"a long first version")
    copy(base, "file", b"xxxx", file_size=6)
    copy(base, "file", b"new", file_size=6)
    copy(base, "file", b"er!", file_size=6, offset=3)
    assert (base / "file").read_bytes() == b"newer!"
    copy(base, "file", b"")
    assert (base / "file").read_bytes() == b""


def test_directory_and_link(base: Path) -> None:
    """A directory gets its mode also when it is there already; a link is replaced."""
    copy(base, "dir", file_mode=stat.S_IFDIR | 0o755)
    copy(base, "dir", file_mode=stat.S_IFDIR | 0o700)
    assert stat.S_IMODE((base / "dir").stat().st_mode) == 0o700
    copy(base, "dir/link", b"../first", file_mode=stat.S_IFLNK | 0o777)
    copy(base, "dir/link", b"/second", file_mode=stat.S_IFLNK | 0o777)
    assert os.readlink(base / "dir/link") == "/second"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", ".", "/"])
def test_paths_outside_of_the_shared_directory_are_refused(base: Path, path: str) -> None:
    """Only what lies below the shared directory can be written."""
    with pytest.raises(InvalidSpec):
        copy(base, path, b"x")
    assert list((base.parent / "outside").iterdir()) == []


def test_a_directory_with_the_same_beginning_is_outside(base: Path) -> None:
    """/shared-other is not below /shared."""
    with pytest.raises(InvalidSpec):
        copy(base, f"{base}-other/x", b"x")


def test_planted_links_are_not_followed(base: Path) -> None:
    """A symlink in the place of a parent, of the file or of its temporary leads nowhere."""
    outside = base.parent / "outside"
    (base / "parent").symlink_to(outside)
    with pytest.raises(StepError):
        copy(base, "parent/x", b"x")
    (base / ".file.hako-part").symlink_to(outside / "caught")
    copy(base, "file", b"x")
    assert (base / "file").read_bytes() == b"x"
    (base / "target").symlink_to(outside / "victim")
    copy(base, "target", b"x")
    assert (base / "target").read_bytes() == b"x"
    assert not (base / "target").is_symlink()
    (base / "dir").symlink_to(outside)
    with pytest.raises(StepError):
        copy(base, "dir", file_mode=stat.S_IFDIR | 0o777)
    assert list(outside.iterdir()) == []


def test_other_kinds_and_too_big_pieces_are_refused(base: Path) -> None:
    """No device nodes by this way; a piece is at most 1 MiB."""
    with pytest.raises(InvalidSpec):
        copy(base, "device", file_mode=stat.S_IFCHR | 0o666)
    with pytest.raises(InvalidSpec):
        copy(base, "big", b"x" * ((1 << 20) + 1))
    with pytest.raises(InvalidSpec):
        copy(base, "negative", b"x", offset=-1)


@pytest.mark.parametrize("plant", ["fifo", "link"])
def test_a_temporary_that_was_exchanged_between_pieces_is_refused(base: Path, plant: str) -> None:
    """The second piece goes nowhere else, and a planted FIFO does not stop the agent."""
    copy(base, "file", b"12345", file_size=8)
    temporary = base / ".file.hako-part"
    temporary.unlink()
    if plant == "fifo":
        os.mkfifo(temporary)
    else:
        temporary.symlink_to(base.parent / "outside" / "caught")
        (base.parent / "outside" / "caught").write_bytes(b"safe")
    with pytest.raises(StepError):
        copy(base, "file", b"678", file_size=8, offset=5)
    if plant == "link":
        assert (base.parent / "outside" / "caught").read_bytes() == b"safe"
