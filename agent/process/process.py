"""One process of a container: noticed when it exits, by pidfd, and reaped by its number only while that is
its own.

Owns: the registry of the agent's children, and waiting for them. Knows nothing of containers. Called by
agent.container; PID 1's sweep of orphans is reap_orphans() here, because it must not take the exit status of
a child that somebody awaits.
"""

from __future__ import annotations

import os
import select
import time

from agent.linux import syscalls
from agent.linux.loop import READABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.linux.loop import Loop
    from agent.process.stdio import Stdio

UNKNOWN_STATUS = 255
_children: dict[int, Process] = {}


class Process:
    """`pid` is in the agent's namespace. `exit_status` is None until it has exited, then 0-255, 128+n for
    signal n.
    """

    __slots__ = ("_callbacks", "_loop", "_pidfd", "exec_id", "exit_status", "pid", "stdio")

    def __init__(self, loop: Loop, pid: int, exec_id: str, stdio: Stdio) -> None:
        self._loop = loop
        self._callbacks: list[Callable[[Process], None]] = []
        self.pid = pid
        self.exec_id = exec_id
        self.exit_status: int | None = None
        self.stdio = stdio
        # The child is not reaped yet, so this is no other process.
        self._pidfd = os.pidfd_open(pid)
        _children[pid] = self
        loop.add(self._pidfd, READABLE, self._ready)

    def on_exit(self, callback: Callable[[Process], None]) -> None:
        """Call back when it exits, from the loop; soon, if it has. Its output may still be on its way."""
        if self.exit_status is None:
            self._callbacks.append(callback)
        else:
            self._loop.call_soon(lambda: callback(self))

    def signal(self, signum: int) -> None:
        """Send a signal; nothing happens when it has exited. Raises OSError (EINVAL: no such signal)."""
        if self._pidfd >= 0:
            try:
                syscalls.pidfd_send_signal(self._pidfd, signum)
            except ProcessLookupError:
                pass

    def fileno(self) -> int:
        """The pidfd, readable once the process has exited; -1 when it is reaped."""
        return self._pidfd

    def reap(self) -> bool:
        """Take the exit status if there is one; True when the process is over."""
        if self.exit_status is not None:
            return True
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:  # somebody else waited for it
            self._exited(UNKNOWN_STATUS)
            return True
        if result is None:
            return False
        self._exited(result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status)
        return True

    def _ready(self, _events: int) -> None:
        if self._pidfd >= 0:
            self.reap()

    def _exited(self, status: int) -> None:
        self.exit_status = status
        _children.pop(self.pid, None)
        self._loop.remove(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self.stdio.process_exited()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


def wait_all(processes: Iterable[Process], seconds: float) -> bool:
    """Wait, without the loop, until all have exited; False when the time was over first.

    All at once, and not one after the other: the init of a pid namespace exits only after every process in it
    is reaped.
    """
    deadline = time.monotonic() + seconds
    alive = [process for process in processes if not process.reap()]
    while alive:
        poll = select.poll()
        for process in alive:
            poll.register(process.fileno(), select.POLLIN)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return False
        alive = [process for process in alive if not process.reap()]
    return True


def reap_orphans() -> None:
    """Reap what was re-parented to PID 1. Call it from the loop when SIGCHLD came."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        child = _children.get(found.si_pid)
        if child is None:
            os.waitpid(found.si_pid, 0)
        else:
            child.reap()
