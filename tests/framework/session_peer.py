"""A program that attaches its own descriptors to a local process through the real Session and real fifos.

The pod's process is played by `LocalTask`, which runs the command here and behaves on the fifos as
shim/stdio does: it keeps a writing end of stdin until CloseIO and closes its ends at exit. What it was
asked is written to a file. Usage: python -m tests.framework.session_peer DIRECTORY [-i] [-t] COMMAND...
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shim.cli.fifos import Fifos
from shim.cli.session import Session
from shim.cli.task import Task
from shim.errors import HakoError


class LocalTask(Task):
    """The task API's side of one process, without a VM."""

    def __init__(self, directory: Path, fifos: Fifos, command: list[str], *, is_terminal: bool) -> None:
        self.id = "local"
        self._calls = (directory / "calls").open("a", buffering=1)
        self._fifos, self._command, self._is_terminal = fifos, command, is_terminal
        self._keep = -1
        self._done: Callable[[int | None, HakoError | None], None] | None = None

    def when_exited(self, exec_id: str, done: Callable[[int | None, HakoError | None], None]) -> None:
        """Remember whom to tell."""
        self._done = done

    def start(self, exec_id: str = "") -> int:
        """Run the command on the fifos."""
        stdin, self._keep = self._open_stdin()
        stdout = os.open(self._fifos.path("stdout"), os.O_WRONLY)
        if self._is_terminal:
            self._process = self._start_on_terminal(stdin, stdout)
        else:
            stderr = os.open(self._fifos.path("stderr"), os.O_WRONLY)
            self._process = subprocess.Popen(self._command, stdin=stdin, stdout=stdout, stderr=stderr)
            os.close(stderr)
            os.close(stdout)
        threading.Thread(target=self._wait, daemon=True).start()
        return self._process.pid

    def _open_stdin(self) -> tuple[int, int]:
        path = self._fifos.path("stdin")
        if not path:
            return os.open(os.devnull, os.O_RDONLY), -1
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        keep = os.open(path, os.O_WRONLY)
        os.set_blocking(reader, True)
        return reader, keep

    def _start_on_terminal(self, stdin: int, stdout: int) -> subprocess.Popen[bytes]:
        self._master, slave = pty.openpty()
        process = subprocess.Popen(self._command, preexec_fn=lambda: os.login_tty(slave))
        os.close(slave)
        for source, sink in ((stdin, self._master), (self._master, stdout)):
            threading.Thread(target=_copy, args=(source, sink), daemon=True).start()
        return process

    def _wait(self) -> None:
        status = self._process.wait()
        assert self._done is not None
        self._done(128 - status if status < 0 else status, None)

    def send(self, method: str, request: Any) -> None:
        """Do what is asked and note it."""
        if method == "Kill":
            self._calls.write(f"Kill {signal.Signals(request.signal).name}\n")
            self._process.send_signal(request.signal)
        elif method == "ResizePty":
            self._calls.write(f"ResizePty {request.width}x{request.height}\n")
        elif method == "CloseIO":
            self._calls.write("CloseIO\n")
            os.close(self._keep)


def _copy(source: int, sink: int) -> None:
    try:
        while data := os.read(source, 4096):
            os.write(sink, data)
    except OSError:  # EIO: the terminal's last user is gone
        pass
    os.close(sink)


def main(arguments: list[str]) -> int:
    """Attach, and end as the command did; 90: detached, 91: nobody reads our output."""
    directory, *rest = arguments
    flags = {word for word in rest[:2] if word in ("-i", "-t")}
    command = rest[len(flags) :]
    fifos = Fifos(directory, "", stdin="-i" in flags, terminal="-t" in flags)
    task = LocalTask(Path(directory), fifos, command, is_terminal="-t" in flags)
    session = Session(task, fifos, "", interactive="-i" in flags, is_terminal="-t" in flags)
    session.prepare()
    task.start()
    outcome = session.run()
    fifos.close()
    if outcome.status is None:
        return 90 if outcome.reason == "detached" else 91
    return outcome.status


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)
