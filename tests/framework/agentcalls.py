"""Calls to an agent as a host makes them: containers, streams, waiting.

Owns: what is the same for an agent that is a process here (agentproc.py) and one in a VM (agentvm.py).
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from agent.api import agent_pb2, empty_pb2, health_pb2, jsonmap, oci_pb2
from agent.ttrpc.client import Client
from tests.framework import box

SERVICE = "grpc.AgentService"
SECONDS = 20.0

Answer = TypeVar("Answer")


class AgentCaller:
    """`dial(port name)` is the subclass's: a connected socket to "agent" or "stdio"."""

    client: Client

    def __init__(self, rootfs: Path, rootfs_in_guest: str = "") -> None:
        self._rootfs = rootfs
        self._rootfs_in_guest = rootfs_in_guest or str(rootfs)
        self._numbers = itertools.count(1)

    def dial(self, service: str) -> socket.socket:
        """A connected socket."""
        raise NotImplementedError

    def connect(self) -> Client:
        """One more connection."""
        return Client(self.dial("agent"))

    def call(self, method: str, request: Any, answer: type[Answer], seconds: float = SECONDS) -> Answer:
        """One call with an answer."""
        return self.client.call(SERVICE, method, request, answer, seconds)  # type: ignore[type-var]

    def do(self, method: str, seconds: float = SECONDS, **fields: Any) -> None:
        """One call that answers nothing; the request is named after the method."""
        self.call(method, getattr(agent_pb2, method + "Request")(**fields), empty_pb2.Empty, seconds)

    def check(self) -> int:
        """grpc.Health/Check."""
        answer = self.client.call("grpc.Health", "Check", health_pb2.CheckRequest(), health_pb2.HealthCheckResponse, SECONDS)
        return answer.status

    def wait(self, cid: str, exec_id: str = "", seconds: float = SECONDS) -> int:
        """The exit status."""
        request = agent_pb2.WaitProcessRequest(container_id=cid, exec_id=exec_id)
        return self.call("WaitProcess", request, agent_pb2.WaitProcessResponse, seconds).status

    def later(self, method: str, request: Any, answer: Any) -> Later:
        """A call that is not waited for."""
        result = Later()
        self.client.call_async(SERVICE, method, request, answer, result.done)
        return result

    # --- containers -----------------------------------------------------------------------------------------

    def create_sandbox(self, **fields: Any) -> None:
        """A sandbox with a host name."""
        self.do("CreateSandbox", **{"sandbox_id": "s", "hostname": "boxed", **fields})

    def rootfs(self) -> Path:
        """A busybox root file system."""
        if not self._rootfs.exists():
            box.make_rootfs(self._rootfs)
        return self._rootfs

    def spec(self, args: list[str] | str, **changes: Any) -> oci_pb2.Spec:
        """As box.Guest.spec."""
        mapping = box.default_spec(["sh", "-c", args] if isinstance(args, str) else args)
        self.rootfs()
        mapping["root"]["path"] = self._rootfs_in_guest
        for key, value in changes.items():
            box.merge(mapping, key, value)
        message = oci_pb2.Spec()
        jsonmap.fill(message, mapping)
        return message

    def create(self, cid: str, args: list[str] | str, streams: Streams | None = None, **changes: Any) -> None:
        """CreateContainer; without `streams`, stdio is by RPC. `request` adds fields to the request."""
        extra = changes.pop("request", {})
        ports = streams.ports if streams else {}
        spec = self.spec(args, **changes)
        self.do("CreateContainer", container_id=cid, exec_id=cid, OCI=spec, **ports, **extra)

    def start(self, cid: str, args: list[str] | str, streams: Streams | None = None, **changes: Any) -> None:
        """Create and start."""
        self.create(cid, args, streams, **changes)
        self.do("StartContainer", container_id=cid)

    def exec(self, cid: str, exec_id: str, args: list[str] | str, streams: Streams | None = None, **changes: Any) -> None:
        """ExecProcess with the default spec's process."""
        process = self.spec(args, **changes).Process
        ports = streams.ports if streams else {}
        self.do("ExecProcess", container_id=cid, exec_id=exec_id, process=process, **ports)

    def read_all(self, method: str, cid: str, exec_id: str = "") -> bytes:
        """ReadStdout or ReadStderr up to the end."""
        data = b""
        while True:
            request = agent_pb2.ReadStreamRequest(container_id=cid, exec_id=exec_id, len=32768)
            piece = self.call(method, request, agent_pb2.ReadStreamResponse).data
            if not piece:
                return data
            data += piece

    def streams(self, *names: str) -> Streams:
        """Raw streams for a process, as the host opens them."""
        return Streams(self, names or ("stdin", "stdout", "stderr"))

    def open_stream(self) -> tuple[socket.socket, int]:
        """One stream, and the number it named itself by."""
        number = next(self._numbers)
        sock = self.dial("stdio")
        sock.sendall(b"PORT %d\n" % number)
        sock.settimeout(SECONDS)
        return sock, number


class Streams:
    """The host's ends of a process's raw streams."""

    def __init__(self, agent: AgentCaller, names: tuple[str, ...]) -> None:
        self.ports: dict[str, int] = {}
        self._sockets: dict[str, socket.socket] = {}
        for name in names:
            self._sockets[name], self.ports[name + "_port"] = agent.open_stream()

    def write(self, data: bytes) -> None:
        """To stdin."""
        self._sockets["stdin"].sendall(data)

    def close(self) -> None:
        """Hang up everywhere."""
        for sock in self._sockets.values():
            sock.close()

    def close_stdin(self) -> None:
        """The end of stdin."""
        self._sockets["stdin"].close()

    def read_frame(self, name: str = "stdout") -> bytes | None:
        """One chunk of output; b"" at the end; None when the connection ended without one."""
        header = self._exactly(name, 4)
        if len(header) < 4:
            return None
        return self._exactly(name, struct.unpack(">I", header)[0])

    def read_all(self, name: str = "stdout") -> bytes:
        """All output up to its end, then the stream is closed."""
        pieces: list[bytes] = []
        while True:
            piece = self.read_frame(name)
            assert piece is not None, f"{name} was cut off after {b''.join(pieces)[-200:]!r}"
            if not piece:
                self._sockets[name].close()
                return b"".join(pieces)
            pieces.append(piece)

    def read_until(self, text: bytes, name: str = "stdout") -> bytes:
        """Output up to a text."""
        data = b""
        while text not in data:
            piece = self.read_frame(name)
            assert piece, f"{name} ended after {data!r}"
            data += piece
        return data

    def _exactly(self, name: str, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._sockets[name].recv(count - len(data))
            if not piece:
                break
            data += piece
        return data


class Later:
    """The answer of a call that is not waited for."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self.message: Any = None
        self.error: Exception | None = None

    def done(self, message: Any, error: Exception | None) -> None:
        """What the client calls."""
        self.message, self.error = message, error
        for callback in self._callbacks:
            callback()
        self._arrived.set()

    def then(self, callback: Callable[[], None]) -> None:
        """Call back in the order in which answers come; say so before one can come."""
        self._callbacks.append(callback)

    @property
    def arrived(self) -> bool:
        """Whether it is there."""
        return self._arrived.is_set()

    def get(self, seconds: float = SECONDS) -> Any:
        """The message; raises the error."""
        assert self._arrived.wait(seconds), "no answer"
        if self.error is not None:
            raise self.error
        return self.message


def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def memory_of(pid: int) -> dict[str, int]:
    """Rss and Pss of a process in KiB, from /proc/PID/smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def alive(pid: int) -> bool:
    """Whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
