"""Templates on disk: whole or not there, sparse, copied page for page, swept when nobody can use them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from shim import answers
from shim.errors import HakoError
from shim.sandbox import template, templatekey
from shim.sandbox.templatekey import Identity

PAGE = template.PAGE


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path))
    return tmp_path


def memory(*pages: bytes) -> int:
    """A memfd with these pages; an empty one is a hole."""
    fd = os.memfd_create("test")
    os.ftruncate(fd, PAGE * len(pages))
    for number, page in enumerate(pages):
        if page:
            os.pwrite(fd, page.ljust(PAGE, page[-1:]), number * PAGE)
    return fd


def add(key: str, *pages: bytes, **about: object) -> template.Template:
    """A template under `key`."""
    ram, state = memory(*(pages or (b"ram",))), memory(b"state")
    try:
        with template.locked(key, wait=True) as ours:
            assert ours
            return template.add(Identity(key, {"kernel": "k"}), ram, state, {"files": {}, **about})
    finally:
        os.close(ram)
        os.close(state)


def test_a_clone_gets_the_memory_that_was_saved() -> None:
    """Every page is the same, and the copy is its own."""
    pages = (b"a", b"", b"b", b"\0", b"c", b"", b"")
    made = add("k1", *pages)
    first, second = template.Copy(made), template.Copy(made)
    first.finish()
    second.finish()
    expected = b"".join(page.ljust(PAGE, page[-1:] or b"\0") for page in pages)
    assert os.pread(first.memory_fd, len(expected) + 1, 0) == expected
    os.pwrite(first.memory_fd, b"tenant", 0)
    assert os.pread(second.memory_fd, 6, 0) == b"aaaaaa"
    assert os.pread(first.state_fd, 5, 0) == b"state"
    for copy in (first, second):
        copy.close()
        assert copy.memory_fd >= 0, "the VMM is not waited for to end"
        copy.free()
    assert (first.memory_fd, first.state_fd) == (-1, -1)


def test_pages_of_zeros_take_no_room() -> None:
    """Whether they were holes or not, on disk and in the clone."""
    made = add("k1", b"a", *[b"\0"] * 200, *[b""] * 200, b"z")
    on_disk = os.stat(os.path.join(made.directory, template.MEMORY))
    assert (on_disk.st_size, on_disk.st_blocks * 512) == (402 * PAGE, 2 * PAGE)
    copy = template.Copy(made)
    copy.finish()
    assert os.fstat(copy.memory_fd).st_blocks * 512 == 2 * PAGE
    copy.close()
    copy.free()


def test_nobody_else_may_read_it() -> None:
    """It holds the state of a random pool."""
    made = add("k1")
    assert os.stat(template.root()).st_mode & 0o777 == 0o700
    assert os.stat(os.path.join(made.directory, template.MEMORY)).st_mode & 0o777 == 0o400


def test_what_was_not_finished_is_not_found(cache: Path) -> None:
    """A maker that was killed leaves a draft, which the next sweep takes, unless its maker lives."""
    draft = cache / "template" / ("k1" + template.DRAFT)
    draft.mkdir(parents=True)
    (draft / template.MEMORY).write_bytes(b"half")
    assert template.find("k1") is None
    assert template.every() == []
    with template.locked("k1", wait=False):
        template.sweep(4)
        assert draft.exists()
    template.sweep(4)
    assert not draft.exists()


def test_what_is_left_of_a_template_is_in_nobodys_way(cache: Path) -> None:
    """A directory without its description is not one; a new template takes its place."""
    ruin = cache / "template/k1"
    ruin.mkdir(parents=True)
    (ruin / template.MEMORY).write_bytes(b"old")
    assert template.find("k1") is None
    made = add("k1")
    copy = template.Copy(made)
    copy.finish()
    assert os.pread(copy.memory_fd, 3, 0) == b"ram"
    copy.close()
    copy.free()


def test_a_template_without_its_files_says_so() -> None:
    """It was swept while a pod was starting, or somebody cut it."""
    made = add("k1")
    os.unlink(os.path.join(made.directory, template.STATE))
    with pytest.raises(HakoError, match=r"copy the template: .*/k1: No such file"):
        template.Copy(made)


def test_one_maker_at_a_time() -> None:
    """A second one is told at once, or waits."""
    order = []

    def second() -> None:
        with template.locked("k1", wait=True) as ours:
            order.append(f"second {ours}")

    with template.locked("k1", wait=False) as ours:
        assert ours
        with template.locked("k1", wait=False) as again:
            assert not again
        with template.locked("k2", wait=False) as other:
            assert other
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join(10)
    assert order == ["first", "second True"]


def test_stale_ones_go(tmp_path: Path) -> None:
    """One that was made of a file which has changed, or is gone; or whose description cannot be read."""
    kernel, image = tmp_path / "kernel", tmp_path / "image"
    kernel.write_text("old")
    image.write_text("same")
    files = {str(path): answers.identity(str(path)) for path in (kernel, image)}
    add("old", files=files)
    add("good", files={str(image): files[str(image)]})
    broken = add("broken")
    Path(broken.directory, template.ABOUT).write_text("{")
    kernel.write_text("newer")
    assert sorted(template.sweep(4)) == ["broken", "old"]
    assert [found.key for found in template.every()] == ["good"]
    image.unlink()
    assert template.sweep(4) == ["good"]


def test_a_file_that_was_built_again_is_the_same(tmp_path: Path) -> None:
    """The key has the contents of kernel and image: a copy with another time is no reason to make a template again."""
    image = tmp_path / "image"
    image.write_text("same")
    made = add("k1", files={str(image): templatekey.content(str(image))})
    image.unlink()
    image.write_text("same")
    os.utime(image, (1000, 1000))
    assert not template.is_stale(made)
    image.write_text("other")
    assert template.is_stale(made)


def test_the_least_used_go_when_there_are_too_many() -> None:
    """A start from a template is a use."""
    for number in range(4):
        made = add(f"k{number}")
        os.utime(made.directory, (1000 + number, 1000 + number))
    oldest = template.find("k0")
    assert oldest is not None
    copied = template.Copy(oldest)
    copied.close()
    copied.free()
    assert template.sweep(2) == ["k2", "k1"]
    assert [found.key for found in template.every()] == ["k0", "k3"]


def test_a_rejected_one_is_not_tried_for_a_while() -> None:
    """It is gone, its reason is told for ten minutes, and a new one makes it good."""
    add("k1")
    template.reject("k1", "no hello")
    assert template.find("k1") is None
    assert template.failure("k1") == "no hello"
    assert template.failure("k2") == ""
    path = os.path.join(template.root(), "k1" + template.FAILED)
    long_ago = os.stat(path).st_mtime - template.RETRY_SECONDS - 1
    os.utime(path, (long_ago, long_ago))
    assert template.failure("k1") == ""
    template.reject("k1", "again")
    add("k1")
    assert template.failure("k1") == ""
    assert template.find("k1") is not None


def test_destroy_leaves_nothing() -> None:
    """Not even reasons and locks."""
    add("k1")
    add("k2")
    template.reject("k3", "never")
    assert template.destroy() == 2
    assert not os.path.exists(template.root())
    assert template.destroy() == 0
