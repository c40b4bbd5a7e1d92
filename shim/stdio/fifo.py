"""The host's ends of a stream as an engine names them: fifos, files, log files, nothing.

Owns: the schemes of the stdio strings (containerd: "" is null, a plain path or fifo:// a fifo, file:// a
file that is appended to; ours: cri-log:// a log file in the format of the CRI, cri-log://LOG?fifo=FIFO the
same and a fifo too, as long as the one who is attached to it lives; binary:// a logger program) and how
each is opened. Must not know: what is on the other side. Called by relay.py.

Opening never blocks, whoever is at the other end of a fifo or is not there yet. An output fifo is opened
for both directions, so that writing to it neither fails nor ends while containerd restarts; an input fifo
has, besides, a writing end of ours until CloseIO, so that a client that detaches is not the end of input.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from shim.errors import InvalidSpec
from shim.stdio import binary
from shim.stdio.binary import Owner
from shim.stdio.logfile import LogFile
from shim.stdio.pump import Sink, Tee


class Names(NamedTuple):
    """The streams of one process as the engine named them, "" for none. A terminal has no stderr."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Discard:
    """Takes everything and keeps nothing."""

    def write(self, data: bytes) -> None:
        """Forget `data`."""

    def close(self) -> None:
        """Nothing to do."""


class Input(NamedTuple):
    """An opened stdin: `fd` to read from; `keep` our own writing end, -1 if it has none."""

    fd: int
    keep: int


Output = int | Sink | Tee | None


def scheme_of(name: str) -> tuple[str, str]:
    """("fifo", "/path") from a name: scheme and path without query. No scheme means fifo."""
    scheme, separator, rest = name.partition("://")
    return (scheme, rest.partition("?")[0]) if separator else ("fifo", name)


def open_input(name: str) -> Input:
    """The reading end of stdin. Raises InvalidSpec for a scheme that cannot be read, OSError."""
    scheme, path = scheme_of(name)
    if scheme not in ("fifo", "file"):
        raise InvalidSpec("stdin", f"{scheme}:// cannot be read from")
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return Input(fd, -1)
    try:
        return Input(fd, os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        os.close(fd)
        raise


def open_outputs(names: Names, owner: Owner) -> tuple[Output, Output]:
    """What takes stdout and stderr; None where there is no such stream. Raises HakoError, OSError."""
    if scheme_of(names.stdout)[0] == "binary":
        return binary.start(names.stdout, owner)
    stdout = _open_output(names.stdout, "stdout")
    stderr_name = "" if names.terminal else names.stderr
    try:
        return stdout, _open_stderr(stdout, names.stdout, stderr_name)
    except BaseException:
        close_output(stdout)
        raise


def close_output(sink: Output) -> None:
    """Close what `open_outputs` gave."""
    if isinstance(sink, int):
        os.close(sink)
    elif sink is not None:
        sink.close()


def _open_stderr(stdout: Output, stdout_name: str, name: str) -> Output:
    log = stdout.kept if isinstance(stdout, Tee) else stdout
    if name and scheme_of(name) == scheme_of(stdout_name) and isinstance(log, LogFile):
        return _open_log(name, log.stream("stderr"))  # one file, one rotation
    return _open_output(name, "stderr")


def _open_output(name: str, stream: str) -> Output:
    if not name:
        return None
    scheme, path = scheme_of(name)
    if scheme == "fifo":
        return _open_fifo(path)
    if scheme == "file":
        os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if scheme == "cri-log":
        return _open_log(name, LogFile(path, stream))
    raise InvalidSpec(stream, f"unknown scheme {scheme}://", hint="fifo, file, cri-log and binary exist")


def _open_log(name: str, log: LogFile) -> Output:
    """The log alone, or with the fifo that its name has, if somebody reads there."""
    fifo = name.partition("?fifo=")[2]
    if not fifo:
        return log
    try:
        return Tee(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), log)
    except OSError as exc:
        if exc.errno in (errno.ENXIO, errno.ENOENT):  # whoever wanted to be attached has gone meanwhile
            return log
        log.close()
        raise


def _open_fifo(path: str) -> int:
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
