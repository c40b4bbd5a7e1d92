"""The forkserver with the real launcher: pod processes (without a VM) that it forked, and that it would not."""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.install import launcher
from shim.task import forkclient
from tests.framework.importgraph import REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test")
SHIM = "containerd-shim-hako-v2"


def until(what: str, condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


class Room:
    """A state directory, the launcher, a forkserver whose first pod is a `sleep`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "HAKO_STATE_DIR": str(directory)}
        launcher.write(str(directory / "bin"), str(REPOSITORY), sysconfig.get_path("platlib"))
        self.program = str(directory / "bin" / SHIM)
        self.first = subprocess.Popen(["sleep", "600"])
        self.address = forkclient.address()
        words = ["-socket", self.address, "-id", str(self.first.pid), forkclient.ACTION, "x" * forkclient.ROOM]
        subprocess.run([self.program, *words], env=self.environment, check=True, timeout=20)
        until("the forkserver", self.is_served)
        self.pid = next(int(pid) for pid in self.processes() if forkclient.ACTION in self.command(int(pid)))

    def is_served(self) -> bool:
        """Whether it listens; its socket has a name a moment earlier."""
        sock = socket(AF_UNIX, SOCK_STREAM)
        try:
            return sock.connect_ex(self.address) == 0
        finally:
            sock.close()

    def processes(self) -> list[str]:
        """Pids of all that has this state directory in its environment, but the `sleep`."""
        mark = f"HAKO_STATE_DIR={self.directory}".encode()
        found = []
        for path in Path("/proc").iterdir():
            try:
                if path.name.isdigit() and mark in (path / "environ").read_bytes():
                    found.append(path.name)
            except OSError:
                continue
        return found

    @staticmethod
    def command(pid: int) -> list[str]:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")

    def start(self, name: str, *before: str) -> str:
        """Run `start` for a pod in a bundle of its own; what it printed."""
        bundle = self.directory / f"b-{name}"
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps({"ociVersion": "1.0.2"}))
        argv = [*before, self.program, "-namespace", "n", "-id", name, "-address", "", "-publish-binary", "", "start"]
        done = subprocess.run(argv, cwd=bundle, env=self.environment | {"MARK": name}, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout

    def pod(self, name: str) -> int:
        """Pid of the pod process that listens for `name`."""
        for pid in self.processes():
            words = self.command(int(pid))
            if "-id" in words and words[words.index("-id") + 1] == name:
                return int(pid)
        raise AssertionError(f"no process of {name}")

    def close(self) -> None:
        self.first.kill()
        self.first.wait()
        for pid in self.processes():
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """As after an installation: a new __pycache__ changes its directory, and with it the forkserver's address."""
    compileall.compile_dir(REPOSITORY / "shim", quiet=2)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    directory = Path(tempfile.mkdtemp(prefix="hkf", dir="/tmp"))
    monkeypatch.setenv("HAKO_STATE_DIR", str(directory))
    made = Room(directory)
    yield made
    made.close()
    shutil.rmtree(directory)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


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


def test_a_caller_that_gives_up_leaves_no_pod_process(room: Room) -> None:
    """Until `go` the forked process does nothing; the end of the connection ends it."""
    listener = socket(AF_UNIX, SOCK_STREAM)
    listener.bind(str(room.directory / "l"))
    listener.listen(1)
    invocation = {"namespace": "n", "id": "gone", "debug": False}
    job = {"path": "/none", "invocation": invocation, "sandbox": "gone", "bundle": "/", "options": ["", ""], "began": 0}
    waiting = forkclient.ask({**job, "environment": room.environment}, listener)
    assert waiting is not None and parent(waiting.pid) == room.pid
    waiting._sock.close()
    until("its end", lambda: not os.path.exists(f"/proc/{waiting.pid}"))
    listener.close()


def test_nobody_is_asked_where_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`start` goes on by itself."""
    monkeypatch.setenv("HAKO_STATE_DIR", str(tmp_path))
    listener = socket(AF_UNIX, SOCK_STREAM)
    assert forkclient.ask({}, listener) is None
    listener.close()
