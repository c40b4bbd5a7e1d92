"""A pod without a VM: an agent in this process that pretends to run containers, and the machine around it.

The task service, the sandbox, stubs, fifos and relays are the real ones; only the guest is played.
Programs: `echo WORDS`, `cat`, `exit N`, `sleep`, `oom`. `FakeFactory` hands out what a test wants to break:
`machine.die()`, `agent.refuse`, ...
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from socket import AF_UNIX, MSG_WAITALL, SOCK_STREAM, socket, socketpair
from typing import Any, cast

from agent.api import agent_pb2, empty_pb2, health_pb2
from agent.linux.loop import Loop
from agent.ttrpc.client import Client
from agent.ttrpc.server import Deferred, Server
from agent.ttrpc.status import FAILED_PRECONDITION, NOT_FOUND, RpcError
from shim.agent_client import AgentClient
from shim.config import Config
from shim.oci.spec import Spec
from shim.sandbox import ownfiles
from shim.sandbox import plan as planning
from shim.sandbox.fate import Fate
from shim.sandbox.hostside import Request
from shim.sandbox.placement import Files, SharedFiles
from shim.sandbox.store import Store

EMPTY = empty_pb2.Empty()


def _in_thread(function: Callable[[], None]) -> None:
    threading.Thread(target=function, daemon=True).start()


def send_output(sock: socket, data: bytes) -> None:
    """Output as the agent sends it: pieces of at most 64 KiB with their length in front."""
    for at in range(0, len(data), 65536):
        piece = data[at : at + 65536]
        sock.sendall(len(piece).to_bytes(4, "big") + piece)


def end_output(sock: socket) -> None:
    """The end of an output: length 0, then the socket goes."""
    try:
        sock.sendall(bytes(4))
    except OSError:
        pass
    sock.close()


class FakeProcess:
    """A process that the fake agent plays; `end(status)` from any thread, once."""

    def __init__(self, args: list[str], streams: dict[str, socket]) -> None:
        self.args = args
        self.streams = streams
        self.status: int | None = None
        self.waiters: list[Deferred] = []
        self._lock = threading.Lock()

    def run(self, agent: FakeAgent, container_id: str) -> None:
        """Play the program in a thread."""
        threading.Thread(target=self._play, args=(agent, container_id), daemon=True).start()

    def _play(self, agent: FakeAgent, container_id: str) -> None:
        name, *rest = self.args
        if name == "echo":
            self.write(" ".join(rest).encode() + b"\n")
            self.end(0)
        elif name == "exit":
            self.end(int(rest[0]))
        elif name == "oom":
            agent.oom(container_id)
            self.end(137)
        elif name == "cat" and "stdin" in self.streams:
            while data := self.streams["stdin"].recv(65536):
                self.write(data)
            self.end(0)

    def write(self, data: bytes) -> None:
        """Output."""
        if "stdout" in self.streams:
            send_output(self.streams["stdout"], data)

    def end(self, status: int) -> None:
        """The process has ended: streams close, WaitProcess answers."""
        with self._lock:
            if self.status is not None:
                return
            self.status = status
            waiters, self.waiters = self.waiters, []
        for name, sock in self.streams.items():
            end_output(sock) if name != "stdin" else sock.close()
        for waiter in waiters:
            waiter.resolve(agent_pb2.WaitProcessResponse(status=status))

    def wait(self) -> Deferred:
        """An answer to WaitProcess."""
        deferred = Deferred()
        with self._lock:
            if self.status is None:
                self.waiters.append(deferred)
                return deferred
        deferred.resolve(agent_pb2.WaitProcessResponse(status=self.status))
        return deferred


class FakeAgent:
    """Serves grpc.AgentService on a socketpair.

    `calls` records methods; `refuse[method]` is raised instead.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.refuse: dict[str, Exception] = {}
        self.silent: set[str] = set()
        self.processes: dict[tuple[str, str], FakeProcess] = {}
        self.streams: dict[int, socket] = {}
        self.kept: dict[tuple[str, str, str], socket] = {}
        self.oom_waiters: list[Deferred] = []
        self.oom_kills: dict[str, int] = {}
        self._next_port = 5000
        self._loop = Loop()
        host, guest = socketpair(AF_UNIX, SOCK_STREAM)
        self.client = AgentClient(Client(host), 5)
        services = {"grpc.AgentService": self._methods(), "grpc.Health": self._health()}
        self._server = Server(self._loop, services, executor=_in_thread)
        self._loop.call_soon(lambda: self._server.attach(guest))
        self._thread = threading.Thread(target=self._loop.run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The guest is gone: the connection and every stream end."""
        self._loop.call_threadsafe(self._server.close)
        self._loop.stop()
        self._thread.join(5)
        for process in self.processes.values():
            for sock in process.streams.values():
                sock.close()

    def open_stream(self) -> tuple[socket, int]:
        """What the vsock transport would give for the stdio port."""
        host, guest = socketpair(AF_UNIX, SOCK_STREAM)
        self._next_port += 1
        self.streams[self._next_port] = guest
        return host, self._next_port

    def oom(self, container_id: str) -> None:
        """An out-of-memory kill, told to whoever waits for it."""
        self.oom_kills[container_id] = 1
        waiters, self.oom_waiters = self.oom_waiters, []
        for waiter in waiters:
            waiter.resolve(agent_pb2.OOMEvent(container_id=container_id))

    def called(self, method: str) -> list[Any]:
        """The requests of one method, in order."""
        return [request for name, request in self.calls if name == method]

    def _health(self) -> dict[str, Any]:
        reply = health_pb2.HealthCheckResponse(status=1)
        return {"Check": (health_pb2.CheckRequest, lambda _request, _call: reply)}

    def _methods(self) -> dict[str, Any]:
        table: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "CreateContainer": (agent_pb2.CreateContainerRequest, self._create),
            "StartContainer": (agent_pb2.StartContainerRequest, self._start),
            "ExecProcess": (agent_pb2.ExecProcessRequest, self._exec),
            "WaitProcess": (agent_pb2.WaitProcessRequest, lambda r: self._process(r).wait()),
            "SignalProcess": (agent_pb2.SignalProcessRequest, self._signal),
            "RemoveContainer": (agent_pb2.RemoveContainerRequest, self._remove),
            "PauseContainer": (agent_pb2.PauseContainerRequest, lambda _r: EMPTY),
            "ResumeContainer": (agent_pb2.ResumeContainerRequest, lambda _r: EMPTY),
            "UpdateContainer": (agent_pb2.UpdateContainerRequest, lambda _r: EMPTY),
            "TtyWinResize": (agent_pb2.TtyWinResizeRequest, lambda _r: EMPTY),
            "StatsContainer": (agent_pb2.StatsContainerRequest, self._stats),
            "ReadStdout": (agent_pb2.ReadStreamRequest, lambda r: self._read("stdout", r)),
            "ReadStderr": (agent_pb2.ReadStreamRequest, lambda r: self._read("stderr", r)),
            "WriteStdin": (agent_pb2.WriteStreamRequest, self._write),
            "CloseStdin": (agent_pb2.CloseStdinRequest, self._close_stdin),
            "GetOOMEvent": (agent_pb2.GetOOMEventRequest, self._oom_event),
        }
        return {name: (kind, self._recorded(name, handler)) for name, (kind, handler) in table.items()}

    def _recorded(self, name: str, handler: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        def call(request: Any, _call: Any) -> Any:
            self.calls.append((name, request))
            if name in self.refuse:
                raise self.refuse[name]
            return Deferred() if name in self.silent else handler(request)

        return call

    def _take_streams(self, request: Any) -> dict[str, socket]:
        if not (request.stdin_port or request.stdout_port or request.stderr_port):
            return self._keep_streams(request)
        ports = {name: getattr(request, f"{name}_port") for name in ("stdin", "stdout", "stderr")}
        return {name: self.streams.pop(port) for name, port in ports.items() if port}

    def _keep_streams(self, request: Any) -> dict[str, socket]:
        """Without connections the streams are served by requests: we keep their other ends."""
        guest = {}
        for name in ("stdin", "stdout", "stderr"):
            ours, guest[name] = socketpair(AF_UNIX, SOCK_STREAM)
            self.kept[request.container_id, request.exec_id, name] = ours
        return guest

    def _read(self, name: str, request: agent_pb2.ReadStreamRequest) -> agent_pb2.ReadStreamResponse:
        """One frame of the stream, as Kata's agent gives what it read."""
        ours = self.kept[request.container_id, request.exec_id, name]
        size = int.from_bytes(ours.recv(4, MSG_WAITALL), "big")
        return agent_pb2.ReadStreamResponse(data=ours.recv(size, MSG_WAITALL) if size else b"")

    def _write(self, request: agent_pb2.WriteStreamRequest) -> agent_pb2.WriteStreamResponse:
        taken = self.kept[request.container_id, request.exec_id, "stdin"].send(request.data[:100])
        return agent_pb2.WriteStreamResponse(len=taken)

    def _close_stdin(self, request: agent_pb2.CloseStdinRequest) -> Any:
        self.kept[request.container_id, request.exec_id, "stdin"].close()
        return EMPTY

    def _create(self, request: agent_pb2.CreateContainerRequest) -> Any:
        key = (request.container_id, request.container_id)
        self.processes[key] = FakeProcess(list(request.OCI.Process.Args), self._take_streams(request))
        return EMPTY

    def _start(self, request: agent_pb2.StartContainerRequest) -> Any:
        self._find(request.container_id, request.container_id).run(self, request.container_id)
        return EMPTY

    def _exec(self, request: agent_pb2.ExecProcessRequest) -> Any:
        if request.process.Args[0] == "missing":
            raise RpcError(NOT_FOUND, 'exec: "missing": executable file not found in $PATH')
        process = FakeProcess(list(request.process.Args), self._take_streams(request))
        self.processes[(request.container_id, request.exec_id)] = process
        process.run(self, request.container_id)
        return EMPTY

    def _signal(self, request: agent_pb2.SignalProcessRequest) -> Any:
        if request.exec_id:
            targets = [self._find(request.container_id, request.exec_id)]
        else:
            targets = [p for (cid, _), p in self.processes.items() if cid == request.container_id]
        for process in targets:
            process.end(128 + request.signal)
        return EMPTY

    def _remove(self, request: agent_pb2.RemoveContainerRequest) -> Any:
        for key in [key for key in self.processes if key[0] == request.container_id]:
            self.processes.pop(key).end(137)
        return EMPTY

    def _stats(self, request: agent_pb2.StatsContainerRequest) -> Any:
        reply = agent_pb2.StatsContainerResponse()
        reply.cgroup_stats.pids_stats.current = 1
        reply.cgroup_stats.memory_stats.usage.usage = 4096
        reply.cgroup_stats.memory_stats.events["oom_kill"] = self.oom_kills.get(request.container_id, 0)
        return reply

    def _oom_event(self, _request: Any) -> Any:
        deferred = Deferred()
        self.oom_waiters.append(deferred)
        return deferred

    def _process(self, request: Any) -> FakeProcess:
        return self._find(request.container_id, request.exec_id or request.container_id)

    def _find(self, container_id: str, exec_id: str) -> FakeProcess:
        try:
            return self.processes[container_id, exec_id]
        except KeyError:
            raise RpcError(NOT_FOUND, f"no process {exec_id}") from None


class FakeShare:
    """Records what would be shared."""

    def __init__(self) -> None:
        self.entries: dict[str, list[str]] = {}

    def add_rootfs(self, container_id: str, host_path: str, readonly: bool) -> str:
        """The guest's path of a root filesystem."""
        self.entries.setdefault(container_id, []).append(host_path)
        return f"/run/kata-containers/shared/containers/{container_id}/rootfs"

    def add_volume(self, container_id: str, n: int, host_path: str, readonly: bool, propagation: str) -> str:
        """The guest's path of a volume."""
        if not Path(host_path).exists():
            raise RpcError(FAILED_PRECONDITION, f"no such path: {host_path}")
        self.entries.setdefault(container_id, []).append(host_path)
        return f"/run/kata-containers/shared/containers/{container_id}-{n}"

    def remove(self, container_id: str) -> None:
        """Forget a container's entries."""
        self.entries.pop(container_id, None)


class FakeMachine:
    """A machine whose guest is a FakeAgent."""

    def __init__(self, plan: planning.SandboxPlan) -> None:
        self.plan = plan
        self.guest = FakeAgent()
        self.agent = self.guest.client
        self.share: Any = FakeShare()
        self.files: Files = SharedFiles(cast("Any", self.share))
        self.vcpus = plan.vcpus
        self.closed = False
        self.expired = False
        self.rescans = 0
        self.streams_by_rpc = False
        self.agent_is_ours = True
        self._on_end: Callable[[str], None] | None = None

    def open_stream(self) -> tuple[socket, int]:
        """A stream to the guest."""
        return self.guest.open_stream()

    def on_end(self, callback: Callable[[str], None]) -> None:
        """Remember whom to tell."""
        self._on_end = callback

    def await_sandbox(self) -> None:
        """It is there from the beginning."""

    def agent_left(self) -> None:
        """The agent hung up: the machine goes down with it."""
        if not self.closed and self._on_end is not None:
            self._on_end("the agent has closed its connection")

    def rescan_network(self) -> None:
        """Count."""
        self.rescans += 1

    def expire(self) -> None:
        """Remember that it was said."""
        self.expired = True

    def die(self) -> None:
        """QEMU is gone: connection and streams end, then the exit is noticed."""
        self.guest.close()
        if self._on_end is not None:
            threading.Thread(target=self._on_end, args=("QEMU was killed by SIGKILL",)).start()

    def close(self) -> None:
        """End the guest."""
        if not self.closed:
            self.closed = True
            self.guest.close()


class FakeCgroup:
    """A cgroup that is nowhere."""

    def __init__(self) -> None:
        self.dirs: tuple[str, ...] = ()
        self.applied: list[Any] = []

    def missing_parents(self) -> list[str]:
        """See Cgroup."""
        return []

    def create(self) -> None:
        """Nothing."""

    def apply(self, resources: Any) -> None:
        """Record."""
        self.applied.append(resources)

    def remove(self) -> None:
        """Nothing."""


class FakeFactory:
    """Makes FakeMachines; `fail` is raised by `build` instead. `machines` are those made so far."""

    def __init__(self) -> None:
        self.machines: list[FakeMachine] = []
        self.fail: Exception | None = None
        self.streams_by_rpc = False

    def plan(self, config: Config, request: Request, sandbox_id: str, namespace: str) -> planning.SandboxPlan:
        """The real planning on a small host."""
        host = planning.HostLimits(4, 4096)
        alone = ownfiles.is_alone(request.spec.annotations or {})
        own = alone and ownfiles.are_own(request.spec, request.bundle, request.rootfs)
        return planning.plan(request.spec, sandbox_id, namespace, config.hypervisor, host, own_files=own)

    def take_ahead(self, request: Request) -> None:
        """Nothing was begun."""

    def build(self, config: Config, plan: planning.SandboxPlan, netns: str, store: Store, fate: Fate) -> FakeMachine:
        """A machine at once."""
        if self.fail is not None:
            raise self.fail
        self.machines.append(FakeMachine(plan))
        self.machines[-1].streams_by_rpc = self.streams_by_rpc
        return self.machines[-1]

    def cgroup_of(self, container_id: str, spec: Spec) -> Any:
        """A cgroup that is nowhere."""
        return FakeCgroup()
