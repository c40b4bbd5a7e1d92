"""guest-kernel/artifacts.py: made once per key, by one at a time, all or nothing."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import artifacts
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path))
    return tmp_path


def make_file(out: Path) -> None:
    (out / "file").write_text("made")


def test_a_key_tells_every_change() -> None:
    """Label, content and order count, and contents cannot run into each other."""
    keys = [
        artifacts.key(pairs)
        for pairs in (
            [("a", "1"), ("b", "2")], [("b", "2"), ("a", "1")], [("a", "12"), ("b", "")], [("ab", "1"), ("", "2")], [("a", "1")],
        )
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert artifacts.key([("a", "1")]) == artifacts.key([("a", b"1")])


def test_what_is_there_is_not_made_again(cache: Path) -> None:
    """The second wish for a key finds the first one's result."""
    first = artifacts.ensure("kernel", "k", make_file)
    assert first == cache / "kernel" / "k" and (first / "file").read_text() == "made"
    assert artifacts.ensure("kernel", "k", lambda out: pytest.fail("made twice")) == first


def test_a_failure_leaves_nothing(cache: Path) -> None:
    """Half a kernel must never be found."""

    def fail(out: Path) -> None:
        make_file(out)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        artifacts.ensure("kernel", "k", fail)
    assert not (cache / "kernel" / "k").exists() and not list((cache / "unfinished").iterdir())


def test_two_at_once_make_one() -> None:
    """The second waits for the first, and takes what it made."""
    made: list[str] = []
    begun = threading.Event()

    def make(out: Path) -> None:
        made.append(out.name)
        begun.set()
        time.sleep(0.2)
        make_file(out)

    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(artifacts.ensure("image", "k", make))) for _ in range(3)]
    threads[0].start()
    assert begun.wait(5)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1 and len(found) == 3


def test_killed_builds_are_swept(cache: Path) -> None:
    """What a killed build left goes with the next one; what is young or in the works stays."""
    for name, age in (("old", artifacts.UNFINISHED_SECONDS + 1), ("young", 0)):
        path = cache / "unfinished" / name
        path.mkdir(parents=True)
        os.utime(path, (time.time() - age,) * 2)
    artifacts.ensure("image", "k", make_file)
    assert [path.name for path in (cache / "unfinished").iterdir()] == ["young"]


def test_age_is_use_not_making(cache: Path) -> None:
    """The youngest file in the cache is what boots: making something does not choose it."""
    assert (artifacts.ensure("image", "k", make_file) / "file").stat().st_mtime == 0
