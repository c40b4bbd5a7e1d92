"""Spans: what is kept, how a start is told, and the form in which a collector gets them."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from agent.api import trace_pb2
from shim import trace
from shim.cli.trace import ENGINE, report
from shim.config import TraceConfig
from shim.errors import Unavailable
from shim.task import otlp, tracing

MS = 1_000_000


def told(*rows: tuple[str, str, str, int, int]) -> trace_pb2.SpansResponse:
    """(name, object, kind, begin, end), in milliseconds."""
    response = trace_pb2.SpansResponse()
    for name, object, kind, begin, end in rows:
        response.spans.add(name=name, object=object, kind=kind, begin=begin * MS, end=end * MS)
    return response


START = told(
    ("cgroup", "", "step", 1040, 1045),
    ("spawn", "", "step", 1000, 1080), ("boot", "", "step", 1100, 1500), ("share", "c", "step", 1450, 1550),
    ("create", "c", "step", 1560, 1590), ("Create", "c", "call", 1090, 1600), ("start", "c", "step", 1612, 1620),
    ("Start", "c", "call", 1610, 1620), ("CreateContainer", "c", "guest", 1565, 1585), ("agent", "", "guest", 10, 20),
)  # fmt: skip


def test_a_start_is_told_in_order() -> None:
    """Spawn, the engine's own time, each call with its steps, what the guest did in them."""
    lines, wall, explained = report(list(START.spans))
    assert [(line.depth, line.name, line.at // MS, line.took // MS) for line in lines] == [
        (0, "spawn", 0, 80),
        (1, "cgroup", 40, 5),
        (0, ENGINE, 80, 10),
        (0, "Create c", 90, 510),
        (1, "boot", 100, 400),
        (1, "share", 450, 100),
        (1, "create", 560, 30),
        (2, "guest: CreateContainer", 565, 20),
        (0, ENGINE, 600, 10),
        (0, "Start c", 610, 10),
        (1, "start", 612, 8),
    ]
    assert wall == 620 * MS
    # Without 10 ms before the boot, 10 and 10 around create and 2 before start; overlapping steps count once.
    assert explained == (620 - 32) * MS


def test_nothing_was_started() -> None:
    """A pod process that has served no call yet."""
    assert report(list(told(("spawn", "", "step", 1, 2)).spans)) == ([], 0, 0)


def test_spans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that lives long keeps the last ones only."""
    monkeypatch.setattr(trace, "_spans", [])
    for number in range(trace.KEPT + 5):
        with trace.Span(f"n{number}"):
            pass
    kept = trace.spans()
    assert (len(kept), kept[0].name, kept[-1].name) == (trace.KEPT, "n5", f"n{trace.KEPT + 4}")
    assert all(span.begin <= span.end for span in kept)


def test_marks_are_spans_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps without a gap between them."""
    monkeypatch.setattr(trace, "_spans", [])
    marks = trace.Marks()
    marks.mark("one")
    marks.mark("two")
    first, second = trace.spans()
    assert first.end == second.begin and (first.name, second.name) == ("one", "two")
    assert marks.line().endswith("one 0, two 0")


def test_the_process_began_before_now() -> None:
    """From the kernel's own record of this process: about as long ago as it lives."""
    trace.note_process_start()
    age = time.monotonic_ns() - trace._process_began
    assert 0 < age < time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Guest:
    """An agent whose clock is 100 s behind ours."""

    BEHIND = 100_000 * MS

    def __init__(self, failure: Exception | None = None) -> None:
        self.sandbox_id = "s"
        self.failure = failure

    @property
    def agent(self) -> Guest:
        return self

    def spans(self, timeout: float) -> trace_pb2.SpansResponse:
        if self.failure is not None:
            raise self.failure
        response = trace_pb2.SpansResponse(now=time.monotonic_ns() - self.BEHIND)
        response.spans.add(name="CreateContainer", object="c", begin=response.now - 5 * MS, end=response.now)
        response.spans.add(name="liar", object="c", begin=5, end=3)
        response.spans.add(name="giant", object="c", begin=1, end=(1 << 64) - 1)
        return response


def service(guest: Guest, endpoint: str, said: list[str]) -> tracing.TraceService:
    return tracing.TraceService(guest, TraceConfig(endpoint), lambda level, text: said.append(f"{level} {text}"))  # type: ignore[arg-type]


def test_the_guests_clock_is_mapped_to_ours() -> None:
    """A guest's span lies where it was by the host's clock; what cannot be is left out."""
    answer = service(Guest(), "", []).spans()
    (mine,) = [span for span in answer.spans if span.kind == "guest"]
    assert mine.end - mine.begin == 5 * MS
    assert abs(answer.now - mine.end) < 1000 * MS
    assert mine.begin - mine.guest_begin == pytest.approx(Guest.BEHIND, abs=1000 * MS)


def test_a_guest_that_does_not_answer_is_no_error() -> None:
    """The host's spans are told then."""
    said: list[str] = []
    assert not [span for span in service(Guest(Unavailable("gone")), "", said).spans().spans if span.kind == "guest"]
    assert "gone" in said[0]


class Collector(BaseHTTPRequestHandler):
    """Takes one POST."""

    got: list[dict[str, Any]] = []
    status = 200

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *_args: Any) -> None:
        return


@pytest.fixture
def endpoint() -> Any:
    """A collector on a port of its own."""
    Collector.got, Collector.status = [], 200
    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces"
    server.shutdown()
    server.server_close()


def test_a_collector_gets_a_tree(endpoint: str) -> None:
    """One trace: a root, the calls below it, the steps below their calls, times since 1970."""
    before = time.time_ns()
    otlp.send(endpoint, "s", "c", START)
    (scope,) = Collector.got[0]["resourceSpans"][0]["scopeSpans"]
    spans = {span["name"]: span for span in scope["spans"]}
    assert len({span["traceId"] for span in scope["spans"]}) == 1
    root, create = spans["start c"], spans["Create"]
    assert "parentSpanId" not in root and create["parentSpanId"] == root["spanId"]
    assert spans["boot"]["parentSpanId"] == spans["CreateContainer"]["parentSpanId"] == create["spanId"]
    assert spans["start"]["parentSpanId"] == spans["Start"]["spanId"]
    assert int(create["endTimeUnixNano"]) - int(create["startTimeUnixNano"]) == 510 * MS
    assert int(root["startTimeUnixNano"]) > before - 365 * 86400 * 1000 * MS


def test_a_start_is_exported_when_asked_for(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration's switch; without it nothing is sent."""
    monkeypatch.setattr(trace, "_spans", [])
    with trace.Span("Start", "c", trace.CALL):
        pass
    said: list[str] = []
    service(Guest(), endpoint, said)._export("c")
    assert len(Collector.got) == 1 and not said
    service(Guest(), "", said).started("c")
    assert len(Collector.got) == 1


def test_a_collector_that_is_not_there_is_said_once() -> None:
    """A warning in the log, and the start is not touched."""
    said: list[str] = []
    trace.keep(trace.Span("Start", "c", trace.CALL, 1, 2))
    service(Guest(), "http://127.0.0.1:1/v1/traces", said)._export("c")
    assert len(said) == 1 and said[0].startswith("warn spans of c were not sent to http://127.0.0.1:1/v1/traces")
