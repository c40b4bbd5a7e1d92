"""What a pod's process has written into its log, as far as it explains an end to its user.

Owns: reading BUNDLE/log (lines of shim/log.py, or what Python says of a crash). Must not know: what is done about it.
Opened before the end, because a container that is removed takes its log along. Called by run.py, exec.py, ending.py.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.byhand.registry import Container

NAME = "log"  # in the bundle; containerd has a fifo of this name there
TAIL = 8192  # bytes that are looked at


class PodLog:
    """The log of one container's pod; an empty one if it cannot be opened."""

    def __init__(self, container: Container) -> None:
        try:
            self._fd = os.open(container.file(NAME), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def close(self) -> None:
        """Let go of it; repeatable."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def last_error(self) -> str:
        """What the last error says, "" if there was none."""
        errors = [line for line in self._lines() if " level=error " in line]
        return message(errors[-1]) if errors else ""

    def last_words(self) -> str:
        """The last line, unless it is an ordinary one: that of an exception that ended the process."""
        lines = self._lines()
        return lines[-1] if lines and not lines[-1].startswith('time="') else ""

    def _lines(self) -> list[str]:
        if self._fd < 0:
            return []
        size = os.fstat(self._fd).st_size
        return os.pread(self._fd, TAIL, max(0, size - TAIL)).decode("utf-8", "replace").splitlines()


def message(line: str) -> str:
    """The msg of a line as shim/log.py writes it."""
    quoted = line.partition(' msg="')[2].rpartition('" runtime=')[0]
    return quoted.replace('\\"', '"').replace("\\n", "; ").replace("\\\\", "\\")
