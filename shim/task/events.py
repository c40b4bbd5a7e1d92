"""Events for the engine: in order, each once, never in the way of the request that caused them.

Owns: the queue, the thread that forwards to containerd's ttrpc address, retries. Must not know: when which
event is due (service.py). Without an address (CRI-O) events are dropped in silence.

containerd may restart: a failed attempt closes the connection and dials again, five times per event with
growing pauses; then the event is lost, and containerd asks for the state when it loads the task again.
"""

from __future__ import annotations

import queue
import threading
import time
from socket import AF_UNIX, SOCK_STREAM, socket
from typing import TYPE_CHECKING, Any

from agent.api import empty_pb2
from agent.ttrpc.client import Client
from agent.ttrpc.status import RpcError
from shim.task.api import types_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = "containerd.services.events.ttrpc.v1.Events"
QUEUE_LIMIT = 2048
ATTEMPTS = 5
CALL_TIMEOUT = 5.0  # seconds
TOPICS = {
    "TaskCreate": "/tasks/create",
    "TaskStart": "/tasks/start",
    "TaskExit": "/tasks/exit",
    "TaskDelete": "/tasks/delete",
    "TaskOOM": "/tasks/oom",
    "TaskExecAdded": "/tasks/exec-added",
    "TaskExecStarted": "/tasks/exec-started",
    "TaskPaused": "/tasks/paused",
    "TaskResumed": "/tasks/resumed",
}


class Publisher:
    """`address`: path of containerd's ttrpc socket, "" to drop everything. `publish` from any thread."""

    def __init__(self, address: str, namespace: str, log: Callable[[str, str], None]) -> None:
        self._address = address.removeprefix("unix://")
        self._namespace = namespace
        self._log = log
        self._client: Client | None = None
        self._queue: queue.Queue[types_pb2.Envelope | None] = queue.Queue(QUEUE_LIMIT)
        self._thread = threading.Thread(target=self._work, name="hako-events", daemon=True)
        if self._address:
            self._thread.start()

    def publish(self, event: Any) -> None:
        """Queue one containerd.events message, stamped with the present time."""
        if not self._address:
            return
        name = event.DESCRIPTOR.name
        envelope = types_pb2.Envelope(namespace=self._namespace, topic=TOPICS[name])
        envelope.timestamp.seconds, envelope.timestamp.nanos = divmod(time.time_ns(), 1_000_000_000)
        envelope.event.type_url = f"containerd.events.{name}"
        envelope.event.value = event.SerializeToString()
        try:
            self._queue.put_nowait(envelope)
        except queue.Full:
            self._log("error", f"event {TOPICS[name]} is lost: {QUEUE_LIMIT} are waiting")

    def close(self, timeout: float) -> None:
        """Send what is queued, waiting at most `timeout` seconds."""
        if self._thread.is_alive():
            try:
                self._queue.put(None, timeout=timeout)
            except queue.Full:
                return
            self._thread.join(timeout)

    def _work(self) -> None:
        while (envelope := self._queue.get()) is not None:
            self._forward(envelope)
        self._disconnect()

    def _forward(self, envelope: types_pb2.Envelope) -> None:
        request = types_pb2.ForwardRequest(envelope=envelope)
        metadata = {"containerd-namespace-ttrpc": self._namespace}
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(0.1 * 2**attempt)
            try:
                client = self._connected()
                client.call(SERVICE, "Forward", request, empty_pb2.Empty, CALL_TIMEOUT, metadata)
                return
            except (RpcError, OSError) as exc:
                reason = str(exc)
                self._disconnect()
        self._log("error", f"event {envelope.topic} is lost: {reason}")

    def _connected(self) -> Client:
        if self._client is None:
            sock = socket(AF_UNIX, SOCK_STREAM)
            try:
                sock.settimeout(CALL_TIMEOUT)
                sock.connect(self._address)
            except OSError:
                sock.close()
                raise
            self._client = Client(sock)
        return self._client

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
