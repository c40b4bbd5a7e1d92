"""Seccomp profiles that the pool compiles in advance: the last few, each once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim.sandbox import profiles


def test_the_last_ones_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the order of their last use; none at all is none."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path))
    assert profiles.lately() == []
    profiles.note(b"")
    assert profiles.lately() == []
    for number in range(profiles.KEPT + 2):
        profiles.note(b"profile %d" % number)
        for path in (tmp_path / "seccomp").iterdir():  # a file system's clock may be coarse
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
    assert profiles.lately() == [b"profile 5", b"profile 4", b"profile 3", b"profile 2"]
    profiles.note(b"profile 3")
    assert profiles.lately()[0] == b"profile 3"
    assert len(list((tmp_path / "seccomp").iterdir())) == profiles.KEPT


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Costs nothing but time."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path / "file"))
    profiles.note(b"profile")
    assert profiles.lately() == []
