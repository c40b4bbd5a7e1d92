"""The pod process's log: one line per message on stderr, which is the `log` fifo that containerd reads.

Owns: the levels and the line's form (the key=value form of containerd's own log, into which the lines are
copied). Must not know: who logs. A fifo that nobody reads fills up; its lines are dropped, because nothing
may ever wait for the log. No imports beyond os and time.
"""

from __future__ import annotations

import os
import time

LEVELS = {"debug": 0, "info": 1, "warn": 2, "error": 3}


class Log:
    """Call it with a level and a message, from any thread. `level`: the least that is written."""

    def __init__(self, level: str, fd: int = 2) -> None:
        self._least = LEVELS[level]
        self._fd = fd

    def __call__(self, level: str, message: str) -> None:
        """Write one line; lost if nobody takes it."""
        if LEVELS[level] < self._least:
            return
        try:
            os.write(self._fd, _line(level, message))  # in one piece, so that threads' lines do not mix
        except OSError:
            pass


def _line(level: str, message: str) -> bytes:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    word = "warning" if level == "warn" else level
    quoted = message.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'time="{stamp}" level={word} msg="{quoted}" runtime=hako\n'.encode("utf-8", "replace")[:4096]
