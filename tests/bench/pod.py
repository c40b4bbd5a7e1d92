"""A pod driven as containerd drives it, by the shim's command and the task API, without an engine in between.

Owns: bundles, the conversation, the moment when the sandbox is up (the shim logs it). Knows nothing of groups.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from agent.api import empty_pb2
from agent.ttrpc.client import Client
from agent.ttrpc.status import RpcError
from shim.task.api import task_pb2
from tests.bench.lab import Lab
from tests.bench.measure import RunFailed, readable
from tests.bench.stacks import Stack, on

SERVICE = "containerd.task.v2.Task"
NAMESPACE = "bench"
DEADLINE = 120.0
UP = re.compile(rb"is up[^\"]*? after (\d+ ms: [^\"]*)")
PAUSE = ["sleep", "1000000"]
CRI_TYPE, CRI_SANDBOX = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"


class Created(NamedTuple):
    """Seconds from the request Create to: the log's word that the sandbox is up (0: none came); its answer.

    `steps`: what the log says of the way there.
    """

    ready: float
    created: float
    steps: str = ""


class Pod:
    """Its first container has the pod's name. `close` ends it whatever state it is in."""

    def __init__(self, lab: Lab, mode: str, stack: Stack, *, several: bool = False) -> None:
        self.name = lab.unique("p")
        self.directory = lab.directory / "b" / self.name
        self.pid = 0
        self._added: list[str] = []
        self._lab = lab
        self._trace = on(mode, stack)
        self._annotations = {CRI_SANDBOX: self.name} if several else {}
        self._client: Client | None = None
        self._log = -1
        self.log_text = b""
        self.state_dir = lab.directory / "h"
        self.environment = {
            **os.environ, "HAKO_STATE_DIR": str(self.state_dir), "HAKO_CONFIG": str(lab.config(mode, stack)),
        }  # fmt: skip

    # --- life ---------------------------------------------------------------------------------------------

    def start(self) -> float:
        """The shim's `start`; seconds until the command has ended."""
        bundle = self.bundle(self.name, PAUSE, "sandbox")
        os.mkfifo(bundle / "log")
        self._log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
        argv = [str(self._lab.shim), "-namespace", NAMESPACE, "-id", self.name, "-address", "", "-bundle", str(bundle), "start"]
        begin = time.perf_counter()
        done = subprocess.run(
            argv, cwd=bundle, env=self.environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=DEADLINE,
            check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise RunFailed(f"start: {done.stderr.decode(errors='replace')}")
        self._dial(done.stdout.decode().removeprefix("unix://"))
        self.pid = int(self.call("Connect", id=self.name).shim_pid)
        return seconds

    def _dial(self, path: str) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE)
        sock.connect(path)
        self._client = Client(sock)

    def create(self) -> Created:
        """Create of the first container: the machine comes up."""
        done = threading.Event()
        answers: list[Any] = []
        request = task_pb2.CreateTaskRequest(id=self.name, bundle=str(self.directory / self.name))
        begin = time.perf_counter()

        def answered(message: Any, exc: Exception | None) -> None:
            answers[:] = [exc, time.perf_counter() - begin]
            done.set()

        assert self._client is not None
        self._client.call_async(SERVICE, "Create", request, task_pb2.CreateTaskResponse, answered)
        ready = self._await_up(begin, done)
        if not done.wait(DEADLINE):
            raise RunFailed(f"Create: no answer after {DEADLINE:g} s")
        if answers[0] is not None:
            raise RunFailed(f"Create: {answers[0]}; the log: {self.log_text.decode(errors='replace')[-800:]}")
        said = UP.search(self.log_text)
        return Created(ready, answers[1], said[1].decode() if said else "")

    def _await_up(self, begin: float, done: threading.Event) -> float:
        """When the shim logs that the sandbox is up; 0 if Create is answered without that."""
        while time.perf_counter() - begin < DEADLINE:
            ended = done.is_set()
            if readable(self._log, 0.0 if ended else 0.05):
                try:
                    self.log_text += os.read(self._log, 65536)
                except BlockingIOError:
                    pass
                if said := UP.search(self.log_text):
                    seconds = time.perf_counter() - begin
                    self._lab.traces.setdefault(self._trace, []).append(said[1].decode())
                    return seconds
            if ended:
                return 0.0
        return 0.0

    def run(self) -> None:
        """All at once: an idle pod."""
        self.start()
        self.create()
        self.call("Start", id=self.name)

    def close(self) -> None:
        """End the pod: kill, delete, shut down. What cannot be asked any more is ended hard."""
        try:
            if self._client is not None:
                self._end_politely()
        finally:
            if self._client is not None:
                self._client.close()
            if self._log >= 0:
                os.close(self._log)
                self._log = -1
            shutil.rmtree(self.directory, ignore_errors=True)

    def _end_politely(self) -> None:
        for container_id in (*reversed(self._added), self.name):
            self._try("Kill", id=container_id, signal=9, all=True)
            self._try("Wait", id=container_id)
            self._try("Delete", id=container_id)
        self._try("Shutdown", id=self.name, now=True)

    def _try(self, method: str, **fields: Any) -> None:
        try:
            self.call(method, **fields)
        except (RpcError, OSError):
            pass  # never created, ended already

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- more in it ---------------------------------------------------------------------------------------

    def bundle(self, container_id: str, args: list[str], kind: str = "container", **changes: Any) -> Path:
        """A bundle; `changes` replace parts of the spec."""
        directory = self.directory / container_id
        directory.mkdir(parents=True)
        annotations = {**self._annotations, CRI_TYPE: kind} if self._annotations else {}
        spec = self._lab.spec(args, annotations, f"/{NAMESPACE}/{container_id}") | changes
        (directory / "config.json").write_text(json.dumps(spec))
        return directory

    def add(self, container_id: str, args: list[str], **changes: Any) -> float:
        """Create and Start of one more container; seconds."""
        bundle = self.bundle(container_id, args, **changes)
        self._added.append(container_id)
        begin = time.perf_counter()
        self.call("Create", id=container_id, bundle=str(bundle))
        self.call("Start", id=container_id)
        return time.perf_counter() - begin

    def exec(self, container_id: str, exec_id: str, args: list[str], **streams: str) -> None:
        """A further process, started; `streams`: stdin, stdout, stderr as paths of fifos."""
        process = {"args": args, "cwd": "/", "env": ["PATH=/bin:/usr/bin"], "user": {"uid": 0, "gid": 0}}
        spec = {"type_url": "process", "value": json.dumps(process).encode()}
        self.call("Exec", id=container_id, exec_id=exec_id, spec=spec, **streams)
        self.call("Start", id=container_id, exec_id=exec_id)

    def finish(self, container_id: str, exec_id: str = "") -> None:
        """Wait for the end of a container or of a further process, and delete it."""
        self.call("Wait", id=container_id, exec_id=exec_id)
        self.call("Delete", id=container_id, exec_id=exec_id)
        if not exec_id:
            self._added.remove(container_id)

    def fifo(self, name: str) -> Path:
        """A fifo in the pod's directory."""
        path = self.directory / name
        os.mkfifo(path)
        return path

    def dial_agent(self) -> socket.socket:
        """A connection to the agent past the shim. Raises RunFailed where the vsock is the kernel's."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(str(self._hybrid_vsock()))
        sock.sendall(b"CONNECT 1024\n")
        said = b""
        while not said.endswith(b"\n"):
            piece = sock.recv(1)
            if not piece:
                raise RunFailed("the vsock daemon hangs up")
            said += piece
        return sock

    def _hybrid_vsock(self) -> Path:
        from shim import paths

        name = Path(paths.daemon_socket_dir(self.name, NAMESPACE)).name
        path = self.state_dir / "s" / name / "vsock.sock"
        if not path.exists():
            raise RunFailed(f"no {path}: this host's vsock is the kernel's")
        return path

    def call(self, method: str, **fields: Any) -> Any:
        """One call of the task API."""
        stems = {"Exec": "ExecProcess", "Create": "CreateTask", "Update": "UpdateTask"}
        stem = stems.get(method, method)
        request = getattr(task_pb2, f"{stem}Request")(**fields)
        reply = empty_pb2.Empty if method == "Exec" else getattr(task_pb2, f"{stem}Response", empty_pb2.Empty)
        assert self._client is not None
        return self._client.call(SERVICE, method, request, reply, DEADLINE)
