"""Cached answers (shim/answers.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim import answers


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_question_is_asked_once(cache: Path) -> None:
    """The second time the answer comes from the cache; other inputs are another question."""
    asked: list[str] = []

    def ask() -> str:
        asked.append("x")
        return f"answer {len(asked)}"

    assert answers.cached("kvm", ["a", "b"], ask) == ("answer 1", False)
    assert answers.cached("kvm", ["a", "b"], ask) == ("answer 1", True)
    assert answers.cached("kvm", ["ab"], ask) == ("answer 2", False)
    answers.forget("kvm", ["ab"])
    assert answers.cached("kvm", ["ab"], ask) == ("answer 3", False)


def test_failure_is_not_an_answer(cache: Path) -> None:
    """An exception leaves nothing in the cache."""

    def fail() -> str:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        answers.cached("kvm", [], fail)
    assert answers.cached("kvm", [], lambda: "yes") == ("yes", False)


def test_unwritable_cache_only_costs_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache directory that cannot be made is no error."""
    (cache / "file").write_text("")
    monkeypatch.setenv("HAKO_CACHE_DIR", str(cache / "file"))
    assert answers.cached("kvm", [], lambda: "yes") == ("yes", False)


def test_changed_file_is_another_identity(cache: Path) -> None:
    """Contents of another size, or another time, make the old answer void; missing files can be inputs."""
    file = cache / "kernel"
    assert answers.identity(str(file)).endswith(":missing")
    file.write_text("1")
    before = answers.identity(str(file))
    os.utime(file, ns=(1, 1))
    assert answers.identity(str(file)) != before
