"""The agent's API as typed calls, over one ttrpc connection.

Owns: deadlines per call, which features the agent announced, turning its statuses into our errors. Must not
know: how the connection was made (hypervisor/vsock.py) or what the calls are for. Called by shim/sandbox
from any thread.

`extra_features` (AgentDetails) says what a hako agent can do beyond Kata's; a real kata-agent announces
none of ours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from agent.api import agent_pb2, empty_pb2, health_pb2, trace_pb2
from agent.ttrpc.client import Client, ConnectionClosed
from agent.ttrpc.status import RpcError
from shim import errors

if TYPE_CHECKING:
    from google.protobuf.message import Message

AGENT_PORT = 1024
STDIO_PORT = 1027
STREAM_FEATURE = "hako.stdio-streams"

SERVICE = "grpc.AgentService"
HEALTH = "grpc.Health"
TRACE = "hako.Trace"
POOL = "hako.Pool"

Reply = TypeVar("Reply", bound="Message")


def translated(exc: Exception, method: str) -> errors.HakoError:
    """An error of the connection or of the agent as ours."""
    if isinstance(exc, RpcError):
        return errors.of_code(exc.code, exc.message)
    if isinstance(exc, TimeoutError):
        return errors.Timeout("the agent did not answer in time", step=f"agent {method}")
    return errors.Unavailable(f"the connection to the agent is closed: {exc}", step=f"agent {method}")


class AgentClient:
    """Calls to one agent. `timeout` in seconds is for the calls that should not take long.

    `why` says why the connection has ended, if it can ("" if not); it may take a moment.
    """

    def __init__(self, client: Client, timeout: float, why: Callable[[], str] = str) -> None:
        self._client = client
        self._timeout = timeout
        self._why = why

    def close(self) -> None:
        """Drop the connection; pending calls fail."""
        self._client.close()

    def check(self, timeout: float) -> None:
        """Raise unless the agent serves."""
        self.call("Check", health_pb2.CheckRequest(), health_pb2.HealthCheckResponse, timeout, HEALTH)

    def details(self) -> agent_pb2.AgentDetails:
        """What the agent says about itself."""
        request = agent_pb2.GuestDetailsRequest(mem_block_size=True)
        response = self.call("GetGuestDetails", request, agent_pb2.GuestDetailsResponse)
        return response.agent_details

    def spans(self, timeout: float) -> trace_pb2.SpansResponse:
        """What the agent did when, on the guest's clock. Raises Unsupported where it is Kata's."""
        return self.call("Spans", trace_pb2.SpansRequest(), trace_pb2.SpansResponse, timeout, TRACE)

    def do(self, method: str, request: Any, timeout: float | None = None) -> None:
        """A call that answers nothing. `timeout` None: the usual one."""
        self.call(method, request, empty_pb2.Empty, timeout)

    def begin(
        self, method: str, request: Any, timeout: float | None = None, on_answer: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """Send a call that answers nothing, without waiting: what is returned waits for the answer, and raises as `do`.

        The agent takes calls in their order. `on_answer` is called in the client's thread at an answer without error;
        it must not block.
        """
        seconds = self._timeout if timeout is None else timeout
        done = threading.Event()
        failed: list[Exception] = []

        def answered(_response: empty_pb2.Empty | None, exc: Exception | None) -> None:
            if exc is not None:
                failed.append(exc)
            elif on_answer is not None:
                on_answer()
            done.set()

        def wait() -> None:
            if not done.wait(seconds):
                raise self._error(TimeoutError(), method)
            if failed:
                raise self._error(failed[0], method) from failed[0]

        self._async(method, request, empty_pb2.Empty, answered)
        return wait

    def call(
        self,
        method: str,
        request: Any,
        response: type[Reply],
        timeout: float | None = None,
        service: str = SERVICE,
    ) -> Reply:
        """One call. Raises HakoError with the agent's code; Unavailable when the connection is gone."""
        seconds = self._timeout if timeout is None else timeout
        return self._call(method, request, response, seconds, service)

    def long_call(self, method: str, request: Any, response: type[Reply]) -> Reply:
        """A call that may take for ever. Raises as `call`."""
        return self._call(method, request, response, None, SERVICE)

    def _call(self, method: str, request: Any, response: type[Reply], seconds: float | None, service: str) -> Reply:
        try:
            result: Reply = self._client.call(service, method, request, response, seconds)
        except (RpcError, OSError) as exc:
            raise self._error(exc, method) from exc
        return result

    def _error(self, exc: Exception, method: str) -> errors.HakoError:
        """`exc` as ours, with the reason why the connection has ended."""
        reason = self._why() if isinstance(exc, ConnectionClosed) else ""
        return errors.Unavailable(reason, step=f"agent {method}") if reason else translated(exc, method)

    def wait_process(self, container_id: str, exec_id: str, done: Callable[[int | None, errors.HakoError | None], None]) -> None:
        """Call `done(status, None)` when the process has ended, `done(None, error)` if that cannot be known.

        `status` is the exit code, 128 + n for a signal. In the client's thread: `done` must not block.
        """
        request = agent_pb2.WaitProcessRequest(container_id=container_id, exec_id=exec_id)

        def answered(response: agent_pb2.WaitProcessResponse | None, exc: Exception | None) -> None:
            if response is not None:
                done(response.status, None)
            else:
                done(None, translated(exc or RuntimeError("no answer"), "WaitProcess"))

        self._async("WaitProcess", request, agent_pb2.WaitProcessResponse, answered)

    def next_oom(self, done: Callable[[str | None, errors.HakoError | None], None]) -> None:
        """Call `done(container_id, None)` at the next out-of-memory kill. In the client's thread."""

        def answered(response: agent_pb2.OOMEvent | None, exc: Exception | None) -> None:
            if response is not None:
                done(response.container_id, None)
            else:
                done(None, translated(exc or RuntimeError("no answer"), "GetOOMEvent"))

        self._async("GetOOMEvent", agent_pb2.GetOOMEventRequest(), agent_pb2.OOMEvent, answered)

    def _async(
        self,
        method: str,
        request: Any,
        response: type[Reply],
        done: Callable[[Reply | None, Exception | None], None],
    ) -> None:
        try:
            self._client.call_async(SERVICE, method, request, response, done)
        except OSError as exc:
            done(None, exc)
