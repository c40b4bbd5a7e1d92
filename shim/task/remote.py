"""The task API from the other side: what `delete` asks of a pod process that still lives.

Owns: that short conversation. Must not know: state files, mounts. Called by delete.py only (`hako` has its
own client).
"""

from __future__ import annotations

import os
import select
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
    client = _connected(path, timeout)
    try:
        kill = task_pb2.KillRequest(id=container_id, signal=9, all=True)
        _call(client, "Kill", kill, empty_pb2.Empty, deadline)
        _call(client, "Wait", task_pb2.WaitRequest(id=container_id), task_pb2.WaitResponse, deadline)
        _call(client, "Delete", task_pb2.DeleteRequest(id=container_id), task_pb2.DeleteResponse, deadline)
    finally:
        client.close()


def shut_down(path: str, container_id: str, timeout: float) -> None:
    """Ask a process without tasks to end, and wait until it has. Raises OSError, RpcError; one with tasks goes on."""
    deadline = time.monotonic() + timeout
    client = _connected(path, timeout)
    try:
        request = task_pb2.ConnectRequest(id=container_id)
        pidfd = os.pidfd_open(client.call(SERVICE, "Connect", request, task_pb2.ConnectResponse, timeout).shim_pid)
        try:
            _call(client, "Shutdown", task_pb2.ShutdownRequest(id=container_id), empty_pb2.Empty, deadline)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        finally:
            os.close(pidfd)
    finally:
        client.close()


def _connected(path: str, timeout: float) -> Client:
    sock = socket(AF_UNIX, SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return Client(sock)


def _call(client: Client, method: str, request: Message, reply: type[Message], deadline: float) -> None:
    try:
        client.call(SERVICE, method, request, reply, max(0.1, deadline - time.monotonic()))
    except RpcError as exc:
        if exc.code != NOT_FOUND:
            raise
