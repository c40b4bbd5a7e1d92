"""The forkserver with the real launcher: pod processes (without a VM) that it forked, and that it would not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.task import forkclient
from tests.framework.forkroom import SHIM, Room, opened, parent, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test")


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    yield from opened(Room, monkeypatch)


def open_files(pid: int) -> set[str]:
    """What its descriptors are; some go while we look."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def test_a_pod_process_is_forked_and_looks_like_one(room: Room) -> None:
    """It serves on the printed address, has the caller's environment and its own name, and keeps nothing of the server's."""
    address = room.start("box")
    pid = room.pod("box")
    assert parent(pid) == room.pid
    assert room.command(pid)[:5] == [SHIM, "-namespace", "n", "-id", "box"]
    sock = socket(AF_UNIX, SOCK_STREAM)
    sock.connect(address.removeprefix("unix://"))
    sock.close()
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{room.pid}/fd/2") == "/dev/null"
    assert not {link for link in open_files(room.pid) & open_files(pid) if link.startswith(("socket:", str(room.directory)))}


def test_it_ends_with_its_last_pod(room: Room) -> None:
    """Its first pod ends, then the one it made: nothing of it is left, and no zombie before."""
    room.start("one")
    pid = room.pod("one")
    room.first.kill()
    room.first.wait()
    room.start("two")
    os.kill(pid, signal.SIGTERM)
    until("the first pod is reaped", lambda: not os.path.exists(f"/proc/{pid}"))
    assert os.path.exists(room.address)
    os.kill(room.pod("two"), signal.SIGTERM)
    until("the forkserver's end", lambda: not room.processes())
    assert not list(room.directory.glob("forkserver*"))


def test_a_caller_of_other_namespaces_makes_his_own(room: Room) -> None:
    """What the pod process would have inherited from him, the forkserver cannot give it."""
    room.start("apart", "unshare", "--net", "--mount")
    pid = room.pod("apart")
    assert parent(pid) != room.pid
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink(f"/proc/{room.pid}/ns/net")


def test_two_forkservers_are_one(room: Room) -> None:
    """A second one with the same socket leaves at once."""
    words = ["-socket", room.address, "-id", str(room.first.pid), forkclient.ACTION]
    before = set(room.processes())
    subprocess.run([room.program, *words], env=room.environment, check=True, timeout=20)
    until("the second one's end", lambda: set(room.processes()) <= before)
    assert parent_of_new(room) == room.pid


def parent_of_new(room: Room) -> int:
    """The parent of a pod process that is started now."""
    room.start("new")
    return parent(room.pod("new"))


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x02{}", b"\0\0\0\x09not json!"])
def test_what_is_no_job_does_not_disturb_it(room: Room, data: bytes) -> None:
    """Garbage, a giant, a job without what it needs, with and without a descriptor: the next caller is served."""
    for fds in ([], [0], [0, 1]):
        sock = socket(AF_UNIX, SOCK_STREAM)
        sock.settimeout(10)
        sock.connect(room.address)
        packed = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        if data:
            sock.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, packed)] if fds else [])
        sock.shutdown(1)
        try:
            assert sock.recv(16) == b""
        except ConnectionResetError:
            pass  # it hung up before it had read everything
        sock.close()
    assert parent_of_new(room) == room.pid
    assert len(os.listdir(f"/proc/{room.pid}/fd")) < 12


@pytest.mark.parametrize("goes_on", [True, False], ids=["goes on by itself", "was killed"])
def test_a_caller_that_gives_up_leaves_no_pod_process(room: Room, goes_on: bool) -> None:
    """Until `go` the forked process does nothing; the end of the connection ends it. The socket stays if somebody has it."""
    path = room.directory / "l"
    listener = socket(AF_UNIX, SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(1)
    invocation = {"namespace": "n", "id": "gone", "debug": False}
    job = {"path": str(path), "invocation": invocation, "sandbox": "gone", "bundle": "/", "options": ["", ""], "began": 0}
    offer = forkclient.reach({**job, "environment": room.environment})
    assert offer is not None
    waiting = offer.give(listener)
    assert waiting is not None and parent(waiting.pid) == room.pid
    if not goes_on:
        listener.close()
    waiting._sock.close()
    until("its end", lambda: not os.path.exists(f"/proc/{waiting.pid}"))
    assert path.exists() == goes_on
    listener.close()
    path.unlink(missing_ok=True)


def test_nobody_is_asked_where_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`start` goes on by itself."""
    monkeypatch.setenv("HAKO_STATE_DIR", str(tmp_path))
    assert forkclient.reach({}) is None
