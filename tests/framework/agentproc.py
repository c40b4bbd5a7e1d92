"""A real agent process in fresh namespaces of this host, and a caller of it over a unix socket.

Owns: the process from start to end, the connection, raw streams as the host opens them. Needs root and
busybox-static. What a guest would have and this has not: a kernel of its own, cgroup controllers.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

from agent import start
from tests.framework.agentcalls import AgentCaller
from tests.framework.inguest import CgroupTree

BOOTSTRAP = Path(__file__).with_name("agent_bootstrap.py")


class AgentProcess(AgentCaller):
    """`with AgentProcess(tmp_path) as agent`: it has said hello, and `agent.client` is connected."""

    def __init__(self, directory: Path, *, cgroups: bool = False, arguments: tuple[str, ...] = ()) -> None:
        super().__init__(directory / "rootfs")
        self.directory = directory
        self.path = str(directory / "agent.sock")
        self._tree = CgroupTree(cgroups)
        self._arguments = (*arguments, *(() if cgroups else ("--no-cgroups",)))
        self._stderr = (directory / "agent.log").open("w+b")

    def __enter__(self) -> AgentProcess:
        self._tree.__enter__()
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child"]
        site = str(Path(__import__("google.protobuf").__path__[0]).parent)
        own = [sys.executable, str(BOOTSTRAP), self.path, self._tree.directory, site, *self._arguments]
        self.process = subprocess.Popen(
            ["unshare", *namespaces, *own],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        try:
            self._await_hello()
            self.client = self.connect()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.kill()

    def kill(self) -> None:
        """End everything that is left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()
        self._tree.__exit__()

    def _await_hello(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == start.HELLO, f"{line!r} and {self.log()}"

    def log(self) -> str:
        """What the agent wrote to its standard error."""
        return (self.directory / "agent.log").read_text()

    @property
    def pid(self) -> int:
        """The agent's pid on the host."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(children.split()[0])

    def dial(self, service: str) -> socket.socket:
        """See AgentCaller."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path if service == "agent" else f"{self.path}.{service}")
        return sock
