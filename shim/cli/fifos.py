"""The named pipes between a client (`hako run`, `hako exec`) and the pod's process, one per stream.

Owns: the files. Our reading ends are open before the other side opens its writing ends, so that nothing is
lost and nobody waits; stdin is opened when the other side reads. Called by run.py and exec.py.
"""

from __future__ import annotations

import errno
import os

STREAMS = ("stdin", "stdout", "stderr")


class Fifos:
    """The pipes of one process. `close` removes them."""

    def __init__(self, directory: str, prefix: str, *, stdin: bool, terminal: bool, outputs: bool = True) -> None:
        """Make the pipes that are needed: a terminal has no stderr; stdin and outputs are wishes."""
        self._streams = ("stdin", "stdout") if terminal else STREAMS
        wishes = {"stdin": stdin, "stdout": outputs, "stderr": outputs}
        wanted = [stream for stream in self._streams if wishes[stream]]
        self._paths = {stream: os.path.join(directory, f"{prefix}{stream}") for stream in wanted}
        self._fds: dict[str, int] = {}
        try:
            for stream, path in self._paths.items():
                os.mkfifo(path, 0o600)
                if stream != "stdin":
                    self._fds[stream] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def path(self, stream: str) -> str:
        """Host path of the pipe, "" if there is none."""
        return self._paths.get(stream, "")

    def paths(self) -> tuple[str, str, str]:
        """The pipes as the task API wants them."""
        return self.path("stdin"), self.path("stdout"), self.path("stderr")

    def logged(self, log: str) -> tuple[str, str, str]:
        """The same with each output into the log file `log` (host path) as well (shim/stdio/fifo.py)."""
        stdout, stderr = (self._logged(stream, log) for stream in ("stdout", "stderr"))
        return self.path("stdin"), stdout, stderr

    def _logged(self, stream: str, log: str) -> str:
        if stream not in self._streams:
            return ""
        return f"cri-log://{log}?fifo={self.path(stream)}" if self.path(stream) else f"cri-log://{log}"

    def fd(self, stream: str) -> int:
        """Our end of an output, non-blocking; -1 if there is none."""
        return self._fds.get(stream, -1)

    def open_stdin(self) -> int:
        """Our writing end, non-blocking, once the process has started; -1 if nobody reads (any more)."""
        if "stdin" not in self._paths:
            return -1
        try:
            self._fds["stdin"] = os.open(self._paths["stdin"], os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
        return self._fds.get("stdin", -1)

    def close_end(self, stream: str) -> None:
        """Close one of our ends; repeatable."""
        fd = self._fds.pop(stream, -1)
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Close our ends and remove the files."""
        for stream in STREAMS:
            self.close_end(stream)
        for path in self._paths.values():
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
