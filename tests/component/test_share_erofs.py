"""shim/share/erofs.py with the real mkfs.erofs: packed once, bounded, nothing left of what was interrupted."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from shim import process
from shim.errors import HakoError
from shim.process import CommandFailed
from shim.share import erofs

pytestmark = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="no mkfs.erofs: apt-get install erofs-utils")
MAGIC = b"\xe2\xe1\xf5\xe0"  # at 1024


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the images."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache/rootfs"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root filesystem."""
    made = tmp_path / "tree"
    made.mkdir()
    (made / "file").write_text("content of a file")
    os.utime(made / "file", ns=(1, 981_173_106_500_000_000))
    return made


def pack(tree: Path, key: str, most_mib: int = 100) -> bytes:
    """The image's bytes."""
    fd = erofs.packed(str(tree), key, most_mib)
    with open(fd, "rb") as file:
        assert not file.writable()
        return file.read()


def test_an_image_is_made_once(tree: Path, cache: Path) -> None:
    """The second time it is the same file, whatever the tree has become; another key is another image."""
    first = pack(tree, "k1")
    assert first[1024:1028] == MAGIC and b"content of a file" in first
    (tree / "file").write_text("changed")
    assert pack(tree, "k1") == first
    assert b"changed" in pack(tree, "k2")
    assert sorted(path.name for path in cache.glob("*.erofs")) == ["k1.erofs", "k2.erofs"]


def test_times_are_kept(tree: Path, cache: Path) -> None:
    """To the nanosecond: byte code is compared with its source by time."""
    os.close(erofs.packed(str(tree), "k", 100))
    said = process.run(["dump.erofs", "--path=/file", str(cache / "k.erofs")], 10).decode()
    assert "2001-02-03" in said and ".500000000" in said


def test_without_a_key_nothing_is_kept(tree: Path, cache: Path) -> None:
    """The image lives as long as its descriptor."""
    assert pack(tree, "")[1024:1028] == MAGIC
    assert list(cache.iterdir()) == []


def test_the_ones_used_last_stay(tree: Path, cache: Path) -> None:
    """Up to the bound; the one that was just made in any case."""
    (tree / "large").write_bytes(os.urandom(3 << 20))
    for number in range(3):
        os.close(erofs.packed(str(tree), f"k{number}", 100))
        os.utime(cache / f"k{number}.erofs", (number, number))
    os.close(erofs.packed(str(tree), "k0", 100))  # used again
    assert erofs.sweep(7) == ["k1"]
    assert sorted(path.name for path in cache.glob("*.erofs")) == ["k0.erofs", "k2.erofs"]
    os.close(erofs.packed(str(tree), "k9", 0))
    assert [path.name for path in cache.iterdir()] in (["k9.erofs", "k9.lock"], ["k9.lock", "k9.erofs"])


def test_two_at_once_make_one(tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first."""
    runs = []
    run = process.run

    def slowly(argv: list[str], *args: object, **options: object) -> bytes:
        runs.append(argv)
        time.sleep(0.1)
        return run(argv, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(process, "run", slowly)
    threads = [threading.Thread(target=lambda: os.close(erofs.packed(str(tree), "k", 100))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1


def test_a_failure_leaves_nothing_and_says_why(tree: Path, cache: Path) -> None:
    """mkfs.erofs's own words; the next attempt starts anew."""
    with pytest.raises(CommandFailed, match=r"mkfs\.erofs"):
        erofs.packed(str(tree / "none"), "k", 100)
    assert list(cache.glob("*.erofs")) == []
    assert pack(tree, "k")


def test_a_cache_that_cannot_be_written(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named with what it should be."""
    monkeypatch.setenv("HAKO_CACHE_DIR", "/proc/none")
    with pytest.raises(HakoError, match=r"pack the root filesystem: .*HAKO_CACHE_DIR must be"):
        erofs.packed(str(tree), "k", 100)
