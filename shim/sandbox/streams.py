"""A process's streams carried into the guest: connections of their own, or Kata's requests.

Owns: which of the two, and the ports by which the agent knows the connections. Must not know: what moves
the bytes (shim/stdio). Called by container.py before a process is created in the guest; the relay is
started after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from agent.api import agent_pb2
from shim.stdio.relay import Relay, Streams
from shim.stdio.rpcrelay import RpcRelay

if TYPE_CHECKING:
    from socket import socket

    from agent.linux.loop import Loop
    from shim.agent_client import AgentClient

READS = {"stdout": "ReadStdout", "stderr": "ReadStderr"}


class Ports(NamedTuple):
    """The numbers of the streams in CreateContainer and ExecProcess; 0 for none."""

    stdin: int = 0
    stdout: int = 0
    stderr: int = 0


class Guest(Protocol):
    """What this needs of the sandbox."""

    loop: Loop

    @property
    def agent(self) -> AgentClient:
        """The agent."""

    @property
    def streams_by_rpc(self) -> bool:
        """Whether the agent knows no stream connections."""

    def open_stream(self) -> tuple[socket, int]:
        """A stream to the agent and the port by which the agent knows it."""


def connect(guest: Guest, streams: Streams, container_id: str, exec_id: str) -> tuple[Relay | RpcRelay, Ports]:
    """Channels to the guest for `streams`, which are closed if that fails. Raises HakoError, OSError."""
    if guest.streams_by_rpc:
        return RpcRelay(streams, Requests(guest.agent, container_id, exec_id)), Ports()
    sockets: dict[str, socket] = {}
    ports: dict[str, int] = {}
    try:
        for name in streams.channels():
            sockets[name], ports[name] = guest.open_stream()
        return Relay(guest.loop, streams, sockets), Ports(**ports)
    except BaseException:
        streams.close()
        for sock in sockets.values():
            sock.close()
        raise


class Requests:
    """Kata's requests for the streams of one process; implements rpcrelay.Calls."""

    def __init__(self, agent: AgentClient, container_id: str, exec_id: str) -> None:
        self._agent = agent
        self._container_id = container_id
        self._exec_id = exec_id

    def read(self, stream: str, size: int) -> bytes:
        """Output; waits for it."""
        request = agent_pb2.ReadStreamRequest(container_id=self._container_id, exec_id=self._exec_id, len=size)
        return self._agent.long_call(READS[stream], request, agent_pb2.ReadStreamResponse).data

    def write(self, data: bytes) -> int:
        """Input; waits until it is taken."""
        request = agent_pb2.WriteStreamRequest(container_id=self._container_id, exec_id=self._exec_id, data=data)
        return self._agent.long_call("WriteStdin", request, agent_pb2.WriteStreamResponse).len

    def close_stdin(self) -> None:
        """The end of the input."""
        request = agent_pb2.CloseStdinRequest(container_id=self._container_id, exec_id=self._exec_id)
        self._agent.do("CloseStdin", request)
