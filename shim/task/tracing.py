"""Tells the spans of this pod: its process's own and the agent's, both on the host's clock.

Owns: the method hako.Trace/Spans on the pod's socket (agent/api/trace.proto), the mapping of the guest's clock, and the
export after each start where the configuration wants it. Must not know: what the steps are. Wired by daemon.py.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from agent.api import trace_pb2
from shim import trace
from shim.errors import HakoError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.config import TraceConfig
    from shim.sandbox.sandbox import Sandbox

GUEST_SECONDS = 2.0
MOST_GUEST_SPANS = 256


class TraceService:
    """See the module."""

    def __init__(self, sandbox: Sandbox, config: TraceConfig, log: Callable[[str, str], None]) -> None:
        self._sandbox = sandbox
        self._endpoint = config.otlp_endpoint
        self._log = log

    def services(self) -> dict[str, dict[str, tuple[Any, Callable[[Any, Any], Any]]]]:
        """The table for the ttrpc server."""
        return {"hako.Trace": {"Spans": (trace_pb2.SpansRequest, lambda _request, _call: self.spans())}}

    def spans(self) -> trace_pb2.SpansResponse:
        """All that is kept; without the guest's where there is no agent that answers."""
        response = trace_pb2.SpansResponse()
        for span in trace.spans():
            response.spans.add(name=span.name, object=span.object, kind=span.kind, begin=span.begin, end=span.end)
        try:
            self._add_guest(response)
        except HakoError as exc:
            self._log("debug", f"no spans of the guest: {exc}")
        response.now = time.monotonic_ns()
        return response

    def _add_guest(self, response: trace_pb2.SpansResponse) -> None:
        """The guest's clock read between two readings of ours; half the way between them is taken as the same moment."""
        before = time.monotonic_ns()
        told = self._sandbox.agent.spans(GUEST_SECONDS)
        ahead = (before + time.monotonic_ns()) // 2 - told.now
        for span in list(told.spans)[-MOST_GUEST_SPANS:]:
            begin, end = span.begin + ahead, span.end + ahead
            if 0 <= begin <= end < 1 << 63:
                response.spans.add(
                    name=span.name[:64], object=span.object[:128], kind="guest", begin=begin, end=end, guest_begin=span.begin
                )

    def started(self, container_id: str) -> None:
        """A container runs: send its spans, in a thread of their own."""
        if self._endpoint:
            threading.Thread(target=self._export, args=(container_id,), name="hako-otlp", daemon=True).start()

    def _export(self, container_id: str) -> None:
        from shim.task import otlp

        try:
            otlp.send(self._endpoint, self._sandbox.sandbox_id, container_id, self.spans())
        except (OSError, HakoError) as exc:
            self._log("warn", f"spans of {container_id} were not sent to {self._endpoint}: {exc}")
