"""`hako logs`: what a container has printed."""

from __future__ import annotations

import os

from shim.byhand import registry
from shim.cli import crilog, status, values
from shim.cli.options import Option, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.cli.options import Parsed

USAGE = "logs [-f] [--tail N] [--timestamps] CONTAINER"
OPTIONS_END_AT_FIRST_WORD = False
OPTIONS = [
    Option("-f --follow", "", "go on until the container ends"),
    Option("--tail -n", "N", "only the last N lines, or all"),
    Option("-t --timestamps", "", "the time of each line before it"),
]
INTERVAL = 0.1  # seconds between two looks at a log that is followed
DESCRIPTORS = {"stdout": 1, "stderr": 2}


def main(parsed: Parsed) -> int:
    """Print it: the container's stdout to ours, its stderr to ours."""
    if len(parsed.words) != 1:
        raise UsageError("name one container")
    container = registry.find(parsed.words[0])
    path = container.file(registry.OUTPUT)
    tail, timestamps = values.count(parsed.text("--tail", "all")), parsed.flag("--timestamps")
    follower = crilog.Follower(path) if parsed.flag("--follow") else None
    entries = follower.so_far() if follower else crilog.read(path)
    crilog.write(entries if tail < 0 else crilog.last(entries, tail), _put, timestamps=timestamps)
    if follower:
        _follow(container, follower, timestamps=timestamps)
    return 0


def _follow(container: registry.Container, follower: crilog.Follower, *, timestamps: bool) -> None:
    """Print what comes until the container has ended, which is asked before the last look at the log."""
    import time

    alive = True
    while alive:
        alive = not status.has_ended(container)
        crilog.write(follower.poll(), _put, timestamps=timestamps)
        if alive:
            time.sleep(INTERVAL)
    follower.close()


def _put(stream: str, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(DESCRIPTORS[stream], view) :]
