"""A forkserver with the real launcher, for tests: a state directory, and pods (without a VM) that are started in it.

Owns: their environment, finding processes by it. Used by tests/component/test_task_{forkserver,pool}.py.
"""

from __future__ import annotations

import compileall
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from _socket import AF_UNIX, SOCK_STREAM, socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from shim.install import launcher
from shim.task import forkclient
from tests.framework.importgraph import REPOSITORY

SHIM = "containerd-shim-hako-v2"
Made = TypeVar("Made", bound="Room")


def until(what: str, condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def opened(kind: Callable[[Path], Made], monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """A room of that kind in a directory of its own, with nothing left of it afterwards: a fixture's body."""
    directory = Path(tempfile.mkdtemp(prefix="hkf", dir="/tmp"))
    monkeypatch.setenv("HAKO_STATE_DIR", str(directory))
    made = kind(directory)
    yield made
    made.close()
    shutil.rmtree(directory)


class Room:
    """A state directory, the launcher, a forkserver whose first pod is a `sleep`.

    `program` runs the forkserver ([]: the launcher). `configuration` is the text of configuration.toml.
    """

    def __init__(self, directory: Path, program: list[str] | None = None, configuration: str = "") -> None:
        compileall.compile_dir(REPOSITORY / "shim", quiet=2)  # a new __pycache__ changes the forkserver's address
        self.directory = directory
        self.configuration = directory / "hako.toml"
        self.configuration.write_text(configuration)
        places = {"HAKO_STATE_DIR": str(directory), "HAKO_CONFIG": str(self.configuration)}
        self.environment = {**os.environ, **places}
        launcher.write(str(directory / "bin"), str(REPOSITORY), sysconfig.get_path("platlib"))
        self.program = str(directory / "bin" / SHIM)
        self.first = subprocess.Popen(["sleep", "600"])
        self.address = forkclient.address()
        words = ["-socket", self.address, "-id", str(self.first.pid), forkclient.ACTION, "x" * forkclient.ROOM]
        subprocess.run([*(program or [self.program]), *words], env=self.environment, check=True, timeout=20)
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

    def address_of(self, name: str) -> str:
        """Path of the socket of a pod that was started."""
        return (self.directory / f"b-{name}/address").read_text().removeprefix("unix://")

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


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
