"""While a user is attached to a process in a container: bytes, signals and the window's size, until it ends.

Owns: the loop over the user's descriptors and the fifos. Must not know: whether the process is a container's
first or an exec. The loop is this process's only thread besides the connection's reader.

End of input on a pipe becomes end of input in the container. Signals are forwarded; the third SIGINT or
SIGTERM that does not help becomes SIGKILL. ctrl-p ctrl-q on a terminal leaves the container alone. When
nobody reads our output any more, or the terminal was closed, the session ends.
"""

from __future__ import annotations

import os
import select
import signal

from shim.cli import terminal
from shim.cli.fifos import Fifos
from shim.cli.userinput import BLOCK, UserInput
from shim.errors import HakoError
from shim.task.api import task_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.cli.task import Task

DETACHED, BROKEN_PIPE = "detached", "broken pipe"
# Seconds without output after the exit: a grandchild may hold the pipe for ever.
DRAIN = 10.0
PATIENCE = 3
FORWARDED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGALRM,
)  # fmt: skip
OUTPUTS = (("stdout", 1), ("stderr", 2))


class Outcome:
    """How the session ended: with the process's exit status, or None and the reason why the user left."""

    __slots__ = ("reason", "status")

    def __init__(self, status: int | None, reason: str = "") -> None:
        self.status = status
        self.reason = reason


class Session:
    """See the module. `exec_id` is "" for the container's first process.

    Use once: `prepare`, start the process, `run`; and in any case `close`.
    """

    def __init__(self, task: Task, fifos: Fifos, exec_id: str, *, interactive: bool, is_terminal: bool) -> None:
        self._task, self._fifos, self._exec_id = task, fifos, exec_id
        self._is_terminal = is_terminal
        self._raw = is_terminal and interactive and terminal.is_terminal(0)
        self._mode = terminal.RawMode(0)
        self._poll = select.poll()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._input: UserInput | None = None
        self._outputs: dict[int, tuple[str, int]] = {}
        self._exit: tuple[int | None, HakoError | None] | None = None
        self._urgent = 0
        self._hung_up = False
        self._left = ""

    def prepare(self) -> None:
        """Before the process starts: listen to signals, give it the window's size, wait for its exit."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (*FORWARDED, signal.SIGWINCH):
            signal.signal(number, _nothing)
        self._resize()
        self._task.when_exited(self._exec_id, self._exited)

    def run(self) -> Outcome:
        """Move bytes until the process has ended and its output is out.

        Raises errors.Unavailable and the like when its exit status cannot be known.
        """
        if self._raw:
            self._mode.__enter__()
        try:
            self._register()
            self._move_until_exit()
        finally:
            self.close()
        if self._left:
            return Outcome(None, self._left)
        status, error = self._exit or (None, None)
        if error is not None:
            raise error
        return Outcome(status)

    def close(self) -> None:
        """Give the terminal and the signals back; repeatable."""
        self._mode.restore()
        if self._wake_read >= 0:
            for number in (*FORWARDED, signal.SIGWINCH):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.set_wakeup_fd(-1)
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1

    def _register(self) -> None:
        self._poll.register(self._wake_read, select.POLLIN)
        for stream, fd in OUTPUTS:
            fifo = self._fifos.fd(stream)
            if fifo >= 0:
                self._poll.register(fifo, select.POLLIN)
                self._outputs[fifo] = (stream, fd)
        stdin = self._fifos.open_stdin()
        if stdin >= 0:
            self._input = UserInput(self._poll, 0, stdin, self._close_stdin)
            if self._raw:
                self._input.take_detach_keys()

    def _move_until_exit(self) -> None:
        while not self._left and not (self._exit and not self._outputs):
            ready = dict(self._poll.poll(DRAIN * 1000 if self._exit else None))
            if not ready:
                return
            self._handle(ready)

    def _handle(self, ready: dict[int, int]) -> None:
        if self._wake_read in ready:
            self._signals(os.read(self._wake_read, BLOCK))
        for fifo in [fifo for fifo in self._outputs if fifo in ready]:
            self._output(fifo)
        typed = self._input
        if typed is not None:
            typed.handle(ready)
            if typed.detached:
                self._left = DETACHED
            elif typed.gone:
                self._hang_up()

    def _hang_up(self) -> None:
        """The window was closed, which we may read before the signal comes; a shell's leader alone gets one."""
        if not self._hung_up:
            self._forward(signal.SIGHUP)
        self._left = BROKEN_PIPE

    def _output(self, fifo: int) -> None:
        try:
            data = os.read(fifo, BLOCK)
        except BlockingIOError:
            return
        if not data:
            self._poll.unregister(fifo)
            del self._outputs[fifo]
            return
        try:
            _write_all(self._outputs[fifo][1], data)
        except OSError:  # nobody reads our output any more, or the terminal is gone
            self._left = BROKEN_PIPE

    def _close_stdin(self) -> None:
        """The user's input ended, and with it the container's, once it has read what is in the fifo."""
        self._input = None
        self._fifos.close_end("stdin")
        request = task_pb2.CloseIORequest(id=self._task.id, exec_id=self._exec_id, stdin=True)
        self._task.send("CloseIO", request)

    def _signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self._resize()
            elif number:
                self._forward(number)

    def _forward(self, number: int) -> None:
        self._hung_up = self._hung_up or number == signal.SIGHUP
        if number in (signal.SIGINT, signal.SIGTERM):
            self._urgent += 1
            if self._urgent >= PATIENCE:
                number = signal.SIGKILL
        request = task_pb2.KillRequest(id=self._task.id, exec_id=self._exec_id, signal=number)
        self._task.send("Kill", request)

    def _resize(self) -> None:
        if not self._is_terminal:
            return
        columns, rows = terminal.window_size(0 if terminal.is_terminal(0) else 1)
        if columns and rows:
            request = task_pb2.ResizePtyRequest(id=self._task.id, exec_id=self._exec_id, width=columns, height=rows)
            self._task.send("ResizePty", request)

    def _exited(self, status: int | None, error: HakoError | None) -> None:
        """Called in the connection's thread; a zero byte, which is no signal, wakes the loop."""
        self._exit = (status, error)
        try:
            os.write(self._wake_write, b"\0")
        except OSError:  # closed; or full, which wakes as well
            pass


def _nothing(number: int, frame: object) -> None:
    """The handler of a signal that the loop reads from its pipe."""


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody else made it non-blocking
            select.select([], [fd], [])
