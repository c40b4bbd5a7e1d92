"""`hako trace`: where the time of a start went, on the host's clock and on the guest's.

Owns: finding the pod's process, arranging its spans (pure: `report`), the table. Works for every container that hako runs,
whoever asked for it.
"""

from __future__ import annotations

from shim import paths
from shim.cli.options import Option, UsageError
from shim.errors import NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from agent.api import trace_pb2
    from shim.cli.options import Parsed

USAGE = "trace [--json] CONTAINER|SANDBOX"
OPTIONS_END_AT_FIRST_WORD = False
OPTIONS = [Option("--json", "", "the spans, in nanoseconds of the host's monotonic clock")]
SECONDS = 10.0
HEADER = ("STEP", "AT ms", "TOOK ms", "GUEST AT ms")
ENGINE = "waiting for the engine"


class Line:
    """One line of the report. Nanoseconds; `at` counts from the first span; `guest_at` is -1 for the host's own."""

    __slots__ = ("at", "depth", "guest_at", "name", "took")

    def __init__(self, depth: int, name: str, at: int, took: int, guest_at: int = -1) -> None:
        self.depth = depth
        self.name = name
        self.at = at
        self.took = took
        self.guest_at = guest_at


def main(parsed: Parsed) -> int:
    """Ask the pod's process and print what it tells."""
    if len(parsed.words) != 1:
        raise UsageError("name one container")
    told = _ask(socket_of(parsed.words[0]))
    if parsed.flag("--json"):
        print(_as_json(told))
        return 0
    lines, wall, explained = report(list(told.spans))
    from shim.cli.table import table

    print(table(HEADER, [_row(line) for line in lines]), end="")
    print(f"{100 * explained / wall:.1f} % of {wall / 1e6:.1f} ms are explained" if wall else "nothing was started yet")
    return 0


def report(spans: list[trace_pb2.Span]) -> tuple[list[Line], int, int]:
    """Lines in order of time, the wall time from the first span to the end of the last call, and how much steps explain."""
    calls = sorted((span for span in spans if span.kind == "call"), key=lambda span: span.begin)
    spawn = [span for span in spans if span.name == "spawn"]
    if not calls:
        return [], 0, 0
    first = min(span.begin for span in (*spawn, *calls))
    lines = []
    for span in spawn:
        lines.append(Line(0, span.name, span.begin - first, span.end - span.begin))
        lines += _steps([step for step in _inside(span, spans) if step.name != span.name], [], first)
    explained, reached = 0, max((span.end for span in spawn), default=first)
    explained += reached - first
    for call in calls:
        if call.begin > reached:
            lines.append(Line(0, ENGINE, reached - first, call.begin - reached))
            explained += call.begin - reached
        inside = _inside(call, spans)
        lines.append(Line(0, f"{call.name} {call.object}", call.begin - first, call.end - call.begin))
        lines += _steps(inside, [span for span in spans if span.kind == "guest"], first)
        explained += _covered(inside)
        reached = max(reached, call.end)
    return lines, reached - first, explained


def _inside(outer: trace_pb2.Span, spans: list[trace_pb2.Span]) -> list[trace_pb2.Span]:
    """The steps within a span."""
    return [span for span in spans if span.kind == "step" and outer.begin <= span.begin and span.end <= outer.end]


def _steps(steps: list[trace_pb2.Span], guest: list[trace_pb2.Span], first: int) -> Iterator[Line]:
    """Each step with what the guest did in it, once where steps overlap; steps that hold others come before them."""
    left = list(guest)
    for step in sorted(steps, key=lambda span: (span.begin, -span.end)):
        yield Line(1, step.name, step.begin - first, step.end - step.begin)
        for span in [span for span in left if step.begin <= (span.begin + span.end) // 2 <= step.end]:
            left.remove(span)
            yield Line(2, f"guest: {span.name}", span.begin - first, span.end - span.begin, span.guest_begin)


def _covered(spans: list[trace_pb2.Span]) -> int:
    """Nanoseconds in which at least one of the spans lasted."""
    total, reached = 0, 0
    for span in sorted(spans, key=lambda span: span.begin):
        total += max(0, span.end - max(span.begin, reached))
        reached = max(reached, span.end)
    return total


def _row(line: Line) -> tuple[str, str, str, str]:
    guest = "" if line.guest_at < 0 else f"{line.guest_at / 1e6:.1f}"
    return "  " * line.depth + line.name, f"{line.at / 1e6:.1f}", f"{line.took / 1e6:.1f}", guest


def _as_json(told: trace_pb2.SpansResponse) -> str:
    import json

    fields = ("name", "object", "kind", "begin", "end", "guest_begin")
    rows: list[dict[str, Any]] = [{field: getattr(span, field) for field in fields} for span in told.spans]
    return json.dumps(rows, indent=2)


def socket_of(word: str) -> str:
    """The ttrpc socket of the pod that is called so or has a container that is. Raises NotFound."""
    from shim.byhand import registry
    from shim.sandbox import store

    wanted = {word}
    try:
        wanted.add(registry.find(word).id)
    except NotFound:
        pass  # an engine's container
    for namespace, sandbox_id in paths.pods():
        state = store.read(paths.sandbox_dir(sandbox_id, namespace)) or {}
        if wanted & {sandbox_id, *state.get("containers", {})}:
            return paths.task_socket(sandbox_id, namespace)
    raise NotFound(f"no running container or sandbox: {word}", hint="hako list, or the engine's own list, shows them")


def _ask(path: str) -> trace_pb2.SpansResponse:
    from agent.api import trace_pb2
    from shim.cli.task import call

    told: trace_pb2.SpansResponse = call(path, "hako.Trace", "Spans", trace_pb2.SpansRequest(), trace_pb2.SpansResponse, SECONDS)
    return told
