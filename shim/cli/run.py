"""`hako run`: a command in a new container in its own microVM.

Owns: what the user sees of it: progress, the attached session, the exit status. How the container is made:
launch.py. The container belongs to its pod's process: when this one is killed, it goes on.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from shim.byhand import aftercare
from shim.cli import ending, exitstatus, wishes
from shim.cli.launch import Launched, launch
from shim.cli.podlog import PodLog
from shim.cli.progress import Progress
from shim.cli.session import BROKEN_PIPE, DETACHED, Session
from shim.cli.task import Gone
from shim.errors import HakoError

if TYPE_CHECKING:
    from shim.cli.options import Parsed

USAGE = "run [options] IMAGE [COMMAND [ARGUMENT...]]"
OPTIONS_END_AT_FIRST_WORD = True
OPTIONS = wishes.OPTIONS
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def main(parsed: Parsed) -> int:
    """Run it; the command's exit status, 0 with --detach."""
    wanted = wishes.read(parsed)
    _need_root()
    _end_by_signals()
    with ExitStack() as undo:
        try:
            with Progress() as progress:
                made = launch(wanted, progress, undo)
            if wanted.detach:
                _start(made)
                undo.pop_all()
                print(made.container.id)
                return 0
            return _attached(made, wanted, undo)
        except BaseException:
            _ignore_signals()  # what was made is taken away now, whatever the user types meanwhile
            raise


def _attached(made: Launched, wanted: wishes.Wishes, undo: ExitStack) -> int:
    log = PodLog(made.container)
    try:
        return _conducted(made, wanted, undo, log)
    finally:
        log.close()


def _conducted(made: Launched, wanted: wishes.Wishes, undo: ExitStack, log: PodLog) -> int:
    session = Session(made.task, made.fifos, "", interactive=wanted.interactive, is_terminal=wanted.terminal)
    try:
        session.prepare()
        _start(made)
        undo.pop_all()
        outcome = session.run()
    except Gone as exc:
        _take_away(made)
        raise ending.lost(made.container) from exc
    finally:
        session.close()
        made.fifos.close()
    if outcome.status is None:
        return _left(made, outcome.reason)
    ending.explain(log, made.container, outcome.status)
    ending.await_end(made.pod, made.container)
    return outcome.status


def _take_away(made: Launched) -> None:
    """The pod's process was killed, and with it whoever else would do this."""
    ending.end_pod(made.container, made.pod)
    if made.container.remove:
        aftercare.removed(made.container.id)


def _start(made: Launched) -> None:
    try:
        made.task.start()
    except HakoError as exc:
        raise exitstatus.of_start(exc) from exc


def _left(made: Launched, reason: str) -> int:
    """The user left, or whoever read our output did: nobody sees a --rm one end then."""
    if reason == BROKEN_PIPE and made.container.remove:
        ending.kill(made.container)
    elif reason == DETACHED:
        print(f"\r\nhako: detached from {made.container.name}, which goes on", file=sys.stderr)
    return exitstatus.LEFT[reason]


def _need_root() -> None:
    if os.geteuid() != 0:
        raise HakoError("only root can run containers", hint="sudo hako run ...")


def _end_by_signals() -> None:
    """Until the session takes them: a signal ends what is being done, and takes away what was made."""

    def end(number: int, frame: object) -> None:
        _ignore_signals()
        raise SystemExit(128 + number)

    for number in ENDING:
        signal.signal(number, end)


def _ignore_signals() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
