"""The cache of built things: what killed builds left goes, what is in the works stays."""

from __future__ import annotations

import fcntl
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "guest-kernel/artifacts.py"


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with a cache of the test's own."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path))
    spec = importlib.util.spec_from_file_location("guest_artifacts", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _unfinished(root: Path, name: str, age: float) -> Path:
    path = root / name
    path.mkdir(parents=True)
    (path / "object.o").write_text("x")
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


def test_leftovers_of_killed_builds_are_swept(artifacts: ModuleType) -> None:
    """The next build removes an old directory that nobody holds, and neither a held nor a young one."""
    root = artifacts.scratch_root()
    dead, held = (_unfinished(root, name, 2 * artifacts.UNFINISHED_SECONDS) for name in ("dead", "held"))
    young = _unfinished(root, "young", 0)
    lock = os.open(held, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        artifacts.ensure("image", "k", lambda out: (out / "file").write_text("made"))
    finally:
        os.close(lock)
    assert not dead.exists() and held.exists() and young.exists()


def test_a_directory_is_held_while_it_is_made(artifacts: ModuleType) -> None:
    """So that another build does not sweep it, however long it takes; a failure leaves nothing."""

    def make(out: Path) -> None:
        fd = os.open(out, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)

    with pytest.raises(BlockingIOError):
        artifacts.ensure("image", "k", make)
    assert not list(artifacts.scratch_root().iterdir())
