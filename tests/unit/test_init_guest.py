"""agent/init.py: what can be shown without a guest kernel (the rest: tests/vm/test_init_guest.py)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from agent import init
from agent.linux import syscalls
from tests.framework import forked, importtime

IMPORTS = (
    "agent.init agent.cgroups agent.seccomp agent.storage agent.network agent.guest agent.guest.copyfile"
)
HEAVY = {
    "enum", "typing", "re", "json", "dataclasses", "functools", "contextlib", "logging", "socket",
    "subprocess", "threading", "pathlib", "signal", "selectors", "tempfile", "shutil", "datetime",
    "asyncio", "agent.linux.syscall_numbers", "agent.guest.metrics",
}  # fmt: skip


def test_module_list() -> None:
    """One module per line with its parameters; comments and empty lines do not count."""
    text = "# virtio first\n/m/virtio.ko\n\n/m/vsock.ko  a=1 b=2 # why\n"
    assert init.module_lines(text) == [("/m/virtio.ko", ""), ("/m/vsock.ko", "a=1 b=2")]


def test_modules_are_loaded_in_order_and_failures_do_not_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is there already is fine; one that fails is reported with its path, and the next is loaded.
    """
    loaded: list[str] = []

    def finit_module(fd: int, parameters: str, _flags: int = 0) -> None:
        name = os.read(fd, 100).decode()
        if name == "there":
            raise FileExistsError(17, "exists")
        if name == "bad":
            raise OSError(8, "bad format")
        loaded.append(f"{name} {parameters}")

    monkeypatch.setattr(syscalls, "finit_module", finit_module)
    for name in ("first", "there", "bad", "last"):
        (tmp_path / name).write_text(name)
    lines = [
        f"{tmp_path}/first x=1",
        f"{tmp_path}/there",
        f"{tmp_path}/bad",
        f"{tmp_path}/none",
        f"{tmp_path}/last",
    ]
    (tmp_path / "list").write_text("\n".join(lines))
    failures = init.load_modules(str(tmp_path / "list"))
    assert loaded == ["first x=1", "last "]
    assert [failure.split(":")[0] for failure in failures] == [
        f"module {tmp_path}/bad",
        f"module {tmp_path}/none",
    ]
    assert init.load_modules(str(tmp_path / "no list")) == []


def test_closed_standard_streams_are_opened() -> None:
    """Without a console at the start of init, descriptors 0 to 2 are open afterwards and Python can print.
    """

    def act() -> tuple[list[bool], bool, bool]:
        sys.stdout = sys.stderr = None
        saved = os.dup(1)
        for fd in (0, 1, 2):
            os.close(fd)
        init.open_standard_streams()
        open_now = [os.get_inheritable(fd) for fd in (0, 1, 2)]
        printable = sys.stdout is not None and sys.stderr is not None
        next_fd = os.open("/dev/null", os.O_RDONLY)
        os.dup2(saved, 1)
        return open_now, printable, next_fd > 2

    assert forked.run(act) == ([True, True, True], True, True)


def test_open_streams_are_left_alone() -> None:
    """What the kernel gave stays."""

    def act() -> tuple[bool, int]:
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        init.open_standard_streams()
        return os.path.samestat(os.fstat(1), os.fstat(writer)), reader

    assert forked.run(act)[0]


def test_sync_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share whose host side died blocks sync; power-off goes on after its deadline."""
    import time

    def act() -> float:
        monkeypatch.setattr(os, "sync", lambda: time.sleep(1))
        start = time.monotonic()
        init.sync(0.2)
        return time.monotonic() - start

    assert 0.19 < forked.run(act) < 0.9


def test_imports_stay_light() -> None:
    """Python starts twelve times slower in an emulated guest: these modules load nothing heavy."""
    loaded = importtime.loaded_by(f"import {IMPORTS.replace(' ', ', ')}")
    assert "agent.init" in loaded
    assert loaded & HEAVY == set()
