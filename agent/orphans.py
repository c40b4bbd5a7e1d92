"""Reaping of re-parented processes, a duty of PID 1.

Owns the agent's SIGCHLD. Called by agent.start when the agent is PID 1. Children that somebody awaits are never
taken away from him: agent.process.process.reap_orphans knows them.
"""

from __future__ import annotations

import os

from agent.linux.loop import READABLE
from agent.process.process import reap_orphans

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal

    from agent.linux.loop import Loop
else:
    import _signal as signal  # the signal module would bring in enum


def begin(loop: Loop) -> None:
    """Reap orphans whenever a child has ended, from the loop."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _wake)
    loop.add(reader, READABLE, lambda _events: _reap(reader))


def _wake(_signum: int, _frame: object) -> None:
    """The wake-up descriptor does the work; a handler must be there for it to be written."""


def _reap(reader: int) -> None:
    os.read(reader, 4096)
    reap_orphans()
