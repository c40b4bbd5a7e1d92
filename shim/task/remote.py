"""The task API from the other side: what `delete` asks of a pod process that still lives.

Owns: that short conversation. Must not know: state files, mounts. Called by delete.py only (`hako` has its
own client).
"""

from __future__ import annotations

import time
from socket import AF_UNIX, SOCK_STREAM, socket

from agent.api import empty_pb2
from agent.ttrpc.client import Client
from agent.ttrpc.status import NOT_FOUND, RpcError
from shim.task.api import task_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from google.protobuf.message import Message

SERVICE = "containerd.task.v2.Task"


def kill_and_delete(path: str, container_id: str, timeout: float) -> None:
    """Kill the container, wait for its end, delete it. Raises OSError, RpcError; a missing one is fine."""
    deadline = time.monotonic() + timeout
    sock = socket(AF_UNIX, SOCK_STREAM)
    sock.settimeout(timeout)
    sock.connect(path)
    client = Client(sock)
    try:
        kill = task_pb2.KillRequest(id=container_id, signal=9, all=True)
        _call(client, "Kill", kill, empty_pb2.Empty, deadline)
        _call(client, "Wait", task_pb2.WaitRequest(id=container_id), task_pb2.WaitResponse, deadline)
        _call(client, "Delete", task_pb2.DeleteRequest(id=container_id), task_pb2.DeleteResponse, deadline)
    finally:
        client.close()


def _call(client: Client, method: str, request: Message, reply: type[Message], deadline: float) -> None:
    try:
        client.call(SERVICE, method, request, reply, max(0.1, deadline - time.monotonic()))
    except RpcError as exc:
        if exc.code != NOT_FOUND:
            raise
