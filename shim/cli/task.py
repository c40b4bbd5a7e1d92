"""The task API as `hako` speaks it: to the pod's process, over ttrpc, as containerd does.

Owns: the connection and the messages. Must not know: fifos, terminals, records. An error of the other side
becomes one of ours with the same code and words.
"""

from __future__ import annotations

from agent.ttrpc.client import Client, ConnectionClosed
from agent.ttrpc.status import RpcError
from shim import errors
from shim.task.api import task_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SERVICE = "containerd.task.v2.Task"
DIAL_TIMEOUT = 5.0
QUICK = 10.0  # seconds for calls that the pod process answers by itself
SLOW = 300.0  # for those that wait for a VM to boot or a guest to act; their real limits are the configuration's
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"


class Gone(errors.Unavailable):
    """The pod's process has ended; what was asked of it may or may not have been done."""


class Task:
    """One container's task. `address` is what `containerd-shim-hako-v2 start` printed."""

    def __init__(self, address: str, container_id: str) -> None:
        self.id = container_id
        self._client = Client(_dial(address.removeprefix("unix://")))

    def close(self) -> None:
        self._client.close()

    def create(self, bundle: str, stdio: tuple[str, str, str], *, terminal: bool) -> int:
        """Boot the VM if need be and make the container; its pid on the host."""
        stdin, stdout, stderr = stdio
        request = task_pb2.CreateTaskRequest(
            id=self.id, bundle=bundle, terminal=terminal, stdin=stdin, stdout=stdout, stderr=stderr
        )
        return int(self._call("Create", request, task_pb2.CreateTaskResponse, SLOW).pid)

    def start(self, exec_id: str = "") -> int:
        """Let the created process run; its pid on the host."""
        request = task_pb2.StartRequest(id=self.id, exec_id=exec_id)
        return int(self._call("Start", request, task_pb2.StartResponse, SLOW).pid)

    def exec(self, exec_id: str, process: bytes, stdio: tuple[str, str, str], *, terminal: bool) -> None:
        """Announce one more process; `process` is the JSON of an OCI process."""
        stdin, stdout, stderr = stdio
        request = task_pb2.ExecProcessRequest(
            id=self.id, exec_id=exec_id, terminal=terminal, stdin=stdin, stdout=stdout, stderr=stderr
        )
        request.spec.type_url = PROCESS_TYPE
        request.spec.value = process
        self._do("Exec", request)

    def kill(self, signal: int, exec_id: str = "", *, everything: bool = False, timeout: float = QUICK) -> None:
        """Send a signal to a process, or to all of the container. Raises errors.Timeout if the guest does not take it."""
        request = task_pb2.KillRequest(id=self.id, exec_id=exec_id, signal=signal, all=everything)
        self._call("Kill", request, _empty(), timeout)

    def resize(self, columns: int, rows: int, exec_id: str = "") -> None:
        """The size of a process's terminal."""
        self._do("ResizePty", task_pb2.ResizePtyRequest(id=self.id, exec_id=exec_id, width=columns, height=rows))

    def close_stdin(self, exec_id: str = "") -> None:
        """No more input will come."""
        self._do("CloseIO", task_pb2.CloseIORequest(id=self.id, exec_id=exec_id, stdin=True))

    def state(self) -> task_pb2.StateResponse:
        """What the container is doing."""
        request = task_pb2.StateRequest(id=self.id)
        response: task_pb2.StateResponse = self._call("State", request, task_pb2.StateResponse, QUICK)
        return response

    def wait(self, timeout: float | None, exec_id: str = "") -> int:
        """The exit status once the process has ended. Raises errors.Timeout."""
        request = task_pb2.WaitRequest(id=self.id, exec_id=exec_id)
        return int(self._call("Wait", request, task_pb2.WaitResponse, timeout).exit_status)

    def when_exited(self, exec_id: str, done: Callable[[int | None, errors.HakoError | None], None]) -> None:
        """Call `done(status, None)`, or `done(None, error)` if it will never be known, from another
        thread."""

        def answered(response: task_pb2.WaitResponse | None, exc: Exception | None) -> None:
            status = None if response is None else int(response.exit_status)
            done(status, _translated(exc, "Wait") if exc is not None else None)

        request = task_pb2.WaitRequest(id=self.id, exec_id=exec_id)
        self._client.call_async(SERVICE, "Wait", request, task_pb2.WaitResponse, answered)

    def send(self, method: str, request: Any) -> None:
        """Make a call whose answer does not matter, without waiting for it."""
        try:
            self._client.call_async(SERVICE, method, request, _empty(), lambda message, exc: None)
        except ConnectionClosed:
            pass  # the waiter hears of it too

    def pod(self) -> int:
        """A pidfd of the pod's process, the caller's to close."""
        import os

        request = task_pb2.ConnectRequest(id=self.id)
        return os.pidfd_open(self._call("Connect", request, task_pb2.ConnectResponse, QUICK).shim_pid)

    def delete(self, exec_id: str = "") -> int:
        """Forget an ended process; its exit status."""
        request = task_pb2.DeleteRequest(id=self.id, exec_id=exec_id)
        return int(self._call("Delete", request, task_pb2.DeleteResponse, SLOW).exit_status)

    def shutdown(self) -> None:
        """Let the pod's process end, if no task is left."""
        try:
            self._do("Shutdown", task_pb2.ShutdownRequest(id=self.id))
        except errors.Unavailable:
            pass  # it ended before it had answered

    def _do(self, method: str, request: Any) -> None:
        self._call(method, request, _empty(), QUICK)

    def _call(self, method: str, request: Any, response: type[Any], timeout: float | None) -> Any:
        try:
            return self._client.call(SERVICE, method, request, response, timeout)
        except (RpcError, ConnectionClosed) as exc:
            raise _translated(exc, method) from exc


def call(path: str, service: str, method: str, request: Any, response: type[Any], timeout: float) -> Any:
    """One call to the pod's process on its socket `path`; for services beside the task API. Raises HakoError."""
    client = Client(_dial(path))
    try:
        return client.call(service, method, request, response, timeout)
    except (RpcError, ConnectionClosed) as exc:
        raise _translated(exc, method) from exc
    finally:
        client.close()


def _dial(path: str) -> Any:
    from _socket import AF_UNIX, SOCK_STREAM, socket

    sock = socket(AF_UNIX, SOCK_STREAM)
    sock.settimeout(DIAL_TIMEOUT)
    try:
        sock.connect(path)
    except OSError as exc:
        sock.close()
        raise Gone("the container's process is gone", object=path) from exc
    return sock


def _translated(exc: Exception, method: str) -> errors.HakoError:
    if isinstance(exc, RpcError):
        return errors.of_code(exc.code, exc.message)
    return Gone("the container's process ended", step=method)


def _empty() -> type[Any]:
    from agent.api import empty_pb2

    return empty_pb2.Empty
