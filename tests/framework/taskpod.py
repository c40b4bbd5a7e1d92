"""A pod process in this process: the real task service, sandbox and relays around a fake guest.

`Pod` speaks the task API over a unix socket as an engine does, and has the engine's end of events.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket
from typing import Any

from agent.api import empty_pb2
from agent.linux.loop import Loop
from agent.ttrpc.client import Client
from agent.ttrpc.server import Server
from shim.config import Config, RuntimeConfig
from shim.log import Log
from shim.sandbox.sandbox import Sandbox
from shim.task.api import events_pb2, task_pb2, types_pb2
from shim.task.autoremove import Listener
from shim.task.events import Publisher
from shim.task.service import SERVICES, TaskService
from tests.framework.fakeguest import FakeAgent, FakeFactory, FakeMachine

NAMESPACE = "test"


def in_thread(function: Callable[[], None]) -> None:
    """The executor of the pod process."""
    threading.Thread(target=function, daemon=True).start()


def write_bundle(directory: Path, args: list[str], **changes: Any) -> Path:
    """A bundle with an empty root and a minimal config.json; `changes` are merged into its top level."""
    (directory / "rootfs").mkdir(parents=True, exist_ok=True)
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }
    (directory / "config.json").write_text(json.dumps({**spec, **changes}))
    return directory


class EventSink:
    """containerd's end: collects what is forwarded, in order, as (topic, message)."""

    def __init__(self, path: Path) -> None:
        self.received: list[tuple[str, Any]] = []
        self._arrived = threading.Condition()
        self._loop = Loop()
        listener = socket(AF_UNIX, SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()
        service = {"Forward": (types_pb2.ForwardRequest, self._forward)}
        self._server = Server(self._loop, {"containerd.services.events.ttrpc.v1.Events": service})
        self._server.listen(listener)
        threading.Thread(target=self._loop.run, daemon=True).start()

    def _forward(self, request: types_pb2.ForwardRequest, _call: Any) -> empty_pb2.Empty:
        envelope = request.envelope
        kind = getattr(events_pb2, envelope.event.type_url.removeprefix("containerd.events."))
        with self._arrived:
            self.received.append((envelope.topic, kind.FromString(envelope.event.value)))
            self._arrived.notify_all()
        return empty_pb2.Empty()

    def topics(self) -> list[str]:
        """The topics so far, without their common prefix."""
        return [topic.removeprefix("/tasks/") for topic, _ in self.received]

    def wait_for(self, topic: str, count: int = 1, timeout: float = 5) -> Any:
        """The `count`th message of a topic."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._count(topic) >= count, timeout)
        found = [message for name, message in self.received if name == f"/tasks/{topic}"]
        assert len(found) >= count, f"no {count} x {topic} within {timeout} s: {self.topics()}"
        return found[count - 1]

    def _count(self, topic: str) -> int:
        return sum(name == f"/tasks/{topic}" for name, _ in self.received)

    def close(self) -> None:
        """Stop listening."""
        self._loop.call_threadsafe(self._server.close)
        self._loop.stop()


class Pod:
    """One pod process and an engine connected to it. `directory` must be short (sockets)."""

    def __init__(self, directory: Path, sandbox_id: str = "pod1", config: Config | None = None) -> None:
        self.directory = directory
        self.events = EventSink(directory / "ev.sock")
        self.factory = FakeFactory()
        self.shut_down = threading.Event()
        self.loop = Loop()
        os.environ["HAKO_STATE_DIR"] = str(directory / "state")
        log = Log("debug", os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        self._publisher = Publisher(str(directory / "ev.sock"), NAMESPACE, log)
        self.service = TaskService(self._publisher, log, self.shut_down.set)
        config = config or Config(runtime=RuntimeConfig(stdio_drain_timeout=1.0, stop_timeout=1.0))
        listener = Listener(self.service, self.shut_down.set, log)
        self.sandbox = Sandbox(sandbox_id, NAMESPACE, config, self.loop, listener, self.factory, log)
        self.service.sandbox = self.sandbox
        services = dict.fromkeys(SERVICES, self.service.methods())
        self._server = Server(self.loop, services, executor=in_thread)
        path = directory / "task.sock"
        sock = socket(AF_UNIX, SOCK_STREAM)
        sock.bind(str(path))
        sock.listen()
        self._server.listen(sock)
        threading.Thread(target=self.loop.run, daemon=True).start()
        self.client = self.connect()

    def connect(self) -> Client:
        """One more connection of the engine."""
        sock = socket(AF_UNIX, SOCK_STREAM)
        sock.connect(str(self.directory / "task.sock"))
        return Client(sock)

    @property
    def machine(self) -> FakeMachine:
        """The machine booted last."""
        return self.factory.machines[-1]

    @property
    def guest(self) -> FakeAgent:
        """The agent of the machine booted last."""
        return self.machine.guest

    def call(self, method: str, timeout: float = 10, **fields: Any) -> Any:
        """One call of the task API. Raises RpcError."""
        stems = {"Exec": "ExecProcess"} | {name: f"{name}Task" for name in ("Create", "Update", "Checkpoint")}
        stem = stems.get(method, method)
        request = getattr(task_pb2, f"{stem}Request")(**fields)
        reply = empty_pb2.Empty if method == "Exec" else getattr(task_pb2, f"{stem}Response", empty_pb2.Empty)
        return self.client.call("containerd.task.v2.Task", method, request, reply, timeout)

    def bundle(self, container_id: str, *args: str, **changes: Any) -> Path:
        """A bundle for a container that runs `args`."""
        return write_bundle(self.directory / "b" / container_id, list(args), **changes)

    def create(self, container_id: str, *args: str, **fields: Any) -> int:
        """Bundle and Create; the host pid."""
        changes = fields.pop("spec", {})
        bundle = self.bundle(container_id, *args, **changes)
        pid: int = self.call("Create", id=container_id, bundle=str(bundle), **fields).pid
        return pid

    def run(self, container_id: str, *args: str, **fields: Any) -> int:
        """Create and Start."""
        pid = self.create(container_id, *args, **fields)
        self.call("Start", id=container_id)
        return pid

    def exec(self, container_id: str, exec_id: str, *args: str, **fields: Any) -> None:
        """Exec without Start."""
        spec = {"type_url": "process", "value": json.dumps({"args": args, "cwd": "/"}).encode()}
        self.call("Exec", id=container_id, exec_id=exec_id, spec=spec, **fields)

    def fifo(self, name: str) -> str:
        """A fifo as an engine makes it; its path."""
        path = self.directory / name
        os.mkfifo(path, 0o700)
        return str(path)

    def output(self, name: str) -> Output:
        """A fifo for output with an engine reading it."""
        return Output(self.directory / name)

    def close(self) -> None:
        """End everything."""
        self.client.close()
        self.sandbox.end()
        self._publisher.close(2)
        self.loop.call_threadsafe(self._server.close)
        self.loop.stop()
        self.events.close()


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Output:
    """The engine's end of an output fifo, opened before the process starts as engines do."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path, 0o700)
        self.path = str(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read_all(self, timeout: float = 5) -> bytes:
        """Everything until the end, which comes when the last writer has closed."""
        data, deadline = b"", time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while time.monotonic() < deadline:
            if not poll.poll(100):
                continue
            chunk = os.read(self._fd, 1 << 20)
            if not chunk:
                os.close(self._fd)
                return data
            data += chunk
        raise AssertionError(f"no end of {self.path} within {timeout} s; so far {data[:200]!r}")
