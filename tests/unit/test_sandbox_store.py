"""The state file: replaced whole, locked by the living, enough to find processes again."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from shim.errors import AlreadyExists
from shim.sandbox import store
from shim.sandbox.store import Store


def test_state_is_on_disk_after_every_change(tmp_path: Path) -> None:
    """What `change` did can be read by another process at once."""
    made = Store.create(str(tmp_path / "p"), "p", "ns")
    made.change(lambda state: state["paths"].append("/x"))
    made.add_process("qemu", os.getpid())
    state = store.read(str(tmp_path / "p"))
    assert state is not None and state["paths"] == ["/x"] and state["sandbox_id"] == "p"
    assert state["processes"] == [{"name": "qemu", "pid": os.getpid(), "start_time": store.start_time(os.getpid())}]
    made.remove()
    assert not (tmp_path / "p").exists()


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """The file is replaced by rename: the old descriptor still holds the whole old content."""
    made = Store.create(str(tmp_path / "p"), "p", "ns")
    with open(tmp_path / "p/state.json", "rb") as before:
        made.change(lambda state: state["paths"].extend(["/y"] * 1000))
        assert json.load(before)["paths"] == []
    assert not (tmp_path / "p/state.json.new").exists()


def test_one_process_has_a_pod(tmp_path: Path) -> None:
    """A second create of the same directory is refused while the first lives."""
    made = Store.create(str(tmp_path), "p", "ns")
    assert store.is_alive(str(tmp_path))
    with pytest.raises(AlreadyExists, match="a process that lives"):
        Store.create(str(tmp_path), "p", "ns")
    made.close()
    assert not store.is_alive(str(tmp_path))
    Store.create(str(tmp_path), "p", "ns").close()


def test_a_successor_waits_until_the_predecessor_has_gone(tmp_path: Path) -> None:
    """A pod of the same name comes while the old one is being taken down: it gets a directory of its own."""
    made = Store.create(str(tmp_path / "p"), "p", "ns")
    going = threading.Timer(0.2, made.remove)
    going.start()
    second = Store.create(str(tmp_path / "p"), "p", "ns")
    going.join()
    assert store.is_alive(str(tmp_path / "p")) and store.read(str(tmp_path / "p")) is not None
    second.remove()


def test_asking_for_life_leaves_no_trace(tmp_path: Path) -> None:
    """A directory that is just being removed must not get a new file."""
    (tmp_path / "p").mkdir()
    assert not store.is_alive(str(tmp_path / "p")) and not store.is_alive(str(tmp_path / "missing"))
    assert not list((tmp_path / "p").iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 99}'])
def test_what_is_no_state_is_none(tmp_path: Path, content: bytes) -> None:
    """A beginning, rubbish or a newer version: nothing that could be trusted."""
    (tmp_path / "state.json").write_bytes(content)
    assert store.read(str(tmp_path)) is None
    assert store.read(str(tmp_path / "missing")) is None


def test_start_time_tells_processes_apart() -> None:
    """It is stable for one process and 0 for none."""
    assert store.start_time(os.getpid()) == store.start_time(os.getpid()) > 0
    assert store.start_time(1 << 22) == 0
