"""Spans to an OpenTelemetry collector: OTLP 1.x as JSON over HTTP (opentelemetry.io/docs/specs/otlp, "OTLP/HTTP").

Owns: that form and one POST. Must not know: where spans come from. Called by tracing.py in a thread of its own; its imports
are paid by nobody else.
"""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from typing import TYPE_CHECKING, Any

from shim.errors import HakoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.api import trace_pb2

SECONDS = 5.0
KIND_INTERNAL = 1
SCOPE = {"name": "hako"}


def send(endpoint: str, sandbox_id: str, container_id: str, told: trace_pb2.SpansResponse) -> None:
    """POST the spans of one container's start. Raises OSError (urllib's URLError is one), HakoError for a refusal."""
    body = json.dumps(document(sandbox_id, container_id, told)).encode()
    request = urllib.request.Request(endpoint, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        if response.status != 200:
            raise HakoError(f"answered {response.status} {response.reason}", step="export spans", object=endpoint)


def document(sandbox_id: str, container_id: str, told: trace_pb2.SpansResponse) -> dict[str, Any]:
    """ExportTraceServiceRequest: one trace whose root lasts from the first span to the end of the container's start."""
    chosen = [span for span in told.spans if span.object in ("", container_id, sandbox_id)]
    # OTLP wants the time since 1970; ours is the monotonic clock.
    ahead = time.time_ns() - time.monotonic_ns()
    trace_id, root = secrets.token_hex(16), secrets.token_hex(8)
    first, last = min(span.begin for span in chosen), max(span.end for span in chosen)
    spans = [_span(trace_id, root, "", f"start {container_id}", first + ahead, last + ahead)]
    spans += _children(trace_id, root, chosen, ahead)
    resource = {"attributes": [_attribute("service.name", "hako"), _attribute("hako.sandbox", sandbox_id)]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": SCOPE, "spans": spans}]}]}


def _children(trace_id: str, root: str, chosen: Sequence[trace_pb2.Span], ahead: int) -> list[dict[str, Any]]:
    """Each span below the innermost call that encloses it, else below the root."""
    calls = {secrets.token_hex(8): span for span in chosen if span.kind == "call"}
    made = [_span(trace_id, own, root, span.name, span.begin + ahead, span.end + ahead) for own, span in calls.items()]
    for span in chosen:
        if span.kind != "call":
            parent = next((own for own, call in calls.items() if call.begin <= span.begin and span.end <= call.end), root)
            child = _span(trace_id, secrets.token_hex(8), parent, span.name, span.begin + ahead, span.end + ahead)
            child["attributes"] = [_attribute("hako.object", span.object), _attribute("hako.kind", span.kind)]
            made.append(child)
    return made


def _span(trace_id: str, own: str, parent: str, name: str, begin: int, end: int) -> dict[str, Any]:
    found: dict[str, Any] = {"traceId": trace_id, "spanId": own, "name": name, "kind": KIND_INTERNAL}
    found |= {"startTimeUnixNano": str(begin), "endTimeUnixNano": str(end)}
    return found | {"parentSpanId": parent} if parent else found


def _attribute(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}
