"""Standard streams of one process: pipes or a terminal on its side, raw streams or RPC on the caller's side.

Owns: every descriptor of a process's stdio that the agent holds, from the pipes' making to their closing, and
the sockets of the plan. Knows nothing of containers. Called by agent.container (makes it, forks, begins it)
and by the service.

A process never gets a socket of the caller's: opening /proc/self/fd/1 must work. Its exit is one event, the
end of its output another: a grandchild may hold the pipe open, and output goes on until it lets go.
"""

from __future__ import annotations

import os

from agent.errors import Unsupported
from agent.process import pty, pump, rpcstream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.linux.loop import Loop
    from agent.process.rpcstream import ReadDone, WriteDone

TERMINAL_QUIET = 0.5
"""Seconds without output after which the terminal of a process that has exited is closed."""
STDIN_QUIET = 0.2
"""Seconds that CloseStdin leaves to data that are still on their way on a raw stream."""
PEER_CLOSES = 10.0
"""Seconds that the host has to close a stream whose end it was told."""
STDIN, STDOUT, STDERR = 0, 1, 2
NAMES = ("stdin", "stdout", "stderr")


class StdioPlan:
    """What a process's streams connect to. A stream is a connected socket's descriptor, owned by Stdio from
    then on.
    """

    __slots__ = ("rpc", "stderr", "stdin", "stdout", "terminal")

    def __init__(
        self,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        *,
        terminal: bool = False,
        rpc: bool = False,
    ) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.terminal = terminal
        self.rpc = rpc
        """no raw streams: keep the agent's ends for read() and write_stdin()"""


class Stdio:
    """See the module. A stream that is neither in the plan nor served by RPC is /dev/null."""

    def __init__(self, loop: Loop, plan: StdioPlan) -> None:
        self._loop = loop
        self._plan = plan
        self._sockets = [plan.stdin, plan.stdout, plan.stderr]
        self._child = [-1, -1, -1]
        self._ours = [-1, -1, -1]
        self._flows: dict[int, pump.Flow] = {}
        self._input: rpcstream.Input | None = None
        self._outputs: dict[int, rpcstream.Output] = {}
        self._open_outputs: set[int] = set()
        self._on_drained: list[Callable[[], None]] = []
        self._size: tuple[int, int] | None = None
        self._begun = False
        self._exited = False
        self._watching_quiet = False
        self.terminal = plan.terminal
        if not plan.terminal:
            self._make_pipes()

    def _make_pipes(self) -> None:
        for number in (STDIN, STDOUT, STDERR):
            if self._plan.rpc or self._sockets[number] is not None:
                reader, writer = os.pipe2(os.O_CLOEXEC)
                self._child[number] = reader if number == STDIN else writer
                self._ours[number] = writer if number == STDIN else reader

    # --- around the fork ------------------------------------------------------------------------------------

    def child_ends(self) -> list[int]:
        """Descriptors that become 0, 1 and 2 of the process; -1 means /dev/null, or the terminal."""
        return list(self._child)

    def give_to(self, uid: int, gid: int) -> None:
        """Make the root of a user namespace their owner, who may then give them to the process's user."""
        for fd in self._child:
            if fd >= 0:
                os.fchown(fd, uid, gid)

    def close_child_ends(self) -> None:
        """The child has its own copies."""
        for number, fd in enumerate(self._child):
            if fd >= 0:
                os.close(fd)
                self._child[number] = -1

    def attach_terminal(self, master: int) -> None:
        """Take the terminal that the child made."""
        self._ours[STDOUT] = master
        if self._plan.rpc or self._sockets[STDIN] is not None:
            self._ours[STDIN] = os.dup(master)  # the loop knows each descriptor once
        if self._size is not None:
            pty.set_size(master, *self._size)

    def begin(self) -> None:
        """Start moving bytes."""
        self._begun = True
        self._open_outputs = {number for number in (STDOUT, STDERR) if self._ours[number] >= 0}
        if self._plan.rpc:
            self._begin_rpc()
        else:
            self._begin_streams()

    def _begin_rpc(self) -> None:
        self._input = rpcstream.Input(self._loop, self._ours[STDIN])
        for number in self._open_outputs:
            self._outputs[number] = rpcstream.Output(self._loop, self._ours[number], self._ender(number))

    def _begin_streams(self) -> None:
        for number in (STDIN, STDOUT, STDERR):
            sock, ours = self._sockets[number], self._ours[number]
            if ours < 0:
                self._end_unused(number)
                continue
            if sock is None:
                # A terminal whose output nobody wants is read all the same, or the process would stop.
                sock = self._sockets[number] = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
            if number == STDIN:
                flow: pump.Flow = pump.Input(self._loop, sock, ours, self._ender(number))
            else:
                flow = pump.Output(self._loop, ours, sock, self._ender(number))
            self._flows[number] = flow
            flow.begin()

    def _end_unused(self, number: int) -> None:
        """A stream that a terminal does not have (stderr): the host is told its end at once."""
        sock = self._sockets[number]
        if sock is not None and number != STDIN:
            self._sockets[number] = None
            os.write(sock, bytes(pump.HEADER))
            pump.close_after_peer(self._loop, sock, PEER_CLOSES)

    # --- while it runs --------------------------------------------------------------------------------------

    def read(self, which: int, size: int, done: ReadDone) -> Callable[[], None]:
        """Long poll for output (1 or 2): `done(data)`, b"" at the end. Returns what cancels it."""
        if not self._plan.rpc:
            raise Unsupported(f"{NAMES[which]} is a raw stream")
        output = self._outputs.get(which)
        if output is None:  # the stderr of a terminal, or a process that has not begun
            done(b"")
            return _nothing
        cancel = output.read(size, done)
        if self._exited and self.terminal:
            self._end_output_when_quiet()
        return cancel

    def write_stdin(self, data: bytes, done: WriteDone) -> None:
        """Write all of `data` for the process, then call `done(count, error or None)`."""
        if not self._plan.rpc or self._input is None:
            raise Unsupported("stdin is a raw stream")
        self._input.write(data, done)

    def close_stdin(self) -> None:
        """No more input. A terminal stays as it is: its end of input is a character."""
        if self.terminal:
            return
        if self._input is not None:
            self._input.close()
        elif STDIN in self._flows:
            self._flows[STDIN].end_when_quiet(STDIN_QUIET)

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; kept for later while there is none yet. Unsupported without a terminal."""
        if not self.terminal:
            raise Unsupported("the process has no terminal")
        self._size = (rows, columns)
        if self._ours[STDOUT] >= 0:
            pty.set_size(self._ours[STDOUT], rows, columns)

    def on_drained(self, callback: Callable[[], None]) -> None:
        """Call once all output was taken and its streams have ended; soon, if that is so already."""
        if self._begun and not self._open_outputs:
            self._loop.call_soon(callback)
        else:
            self._on_drained.append(callback)

    # --- its end --------------------------------------------------------------------------------------------

    def process_exited(self) -> None:
        """Nobody reads input any more. Output goes on; that of a terminal until it is quiet."""
        if self._exited:
            return
        self._exited = True
        self._end_input()
        if self.terminal and STDOUT in self._open_outputs:
            if self._plan.rpc:
                self._end_output_when_quiet()
            else:
                self._flows[STDOUT].end_when_quiet(TERMINAL_QUIET)

    def close(self) -> None:
        """Let go of everything. The host still gets what is in the pipes now, if it takes it in time."""
        self.close_child_ends()
        self._end_input()
        for number in (STDOUT, STDERR):
            if number in self._outputs:
                self._outputs[number].end()
            elif number in self._flows:
                self._finish(number, self._flows[number])
            else:
                self._close(number)

    def _finish(self, number: int, flow: pump.Flow) -> None:
        flow.run()
        if not flow.ended:
            flow.finish()

        def give_up() -> None:
            if not flow.ended:
                flow.stop()
                self._ended(number)

        if not flow.ended:
            self._loop.call_later(PEER_CLOSES, give_up)

    def _end_input(self) -> None:
        if self._input is not None:
            self._input.end()
            self._ours[STDIN] = -1
        elif STDIN in self._flows:
            self._flows[STDIN].stop()
        self._close(STDIN)

    def _end_output_when_quiet(self) -> None:
        """End a terminal that is read by RPC once a reader has waited in vain. Unread output is not lost."""
        output = self._outputs[STDOUT]
        before = output.received
        if self._watching_quiet or not output.has_reader():
            return
        self._watching_quiet = True

        def check() -> None:
            self._watching_quiet = False
            if output.received == before and output.has_reader():
                output.end()
            else:
                self._end_output_when_quiet()

        self._loop.call_later(TERMINAL_QUIET, check)

    def _ender(self, number: int) -> Callable[[], None]:
        return lambda: self._ended(number)

    def _ended(self, number: int) -> None:
        if number in self._outputs:
            self._ours[number] = -1  # closed by its owner
        sock = self._sockets[number]
        if number != STDIN and sock is not None:
            self._sockets[number] = None
            pump.close_after_peer(self._loop, sock, PEER_CLOSES)
        self._close(number)
        self._open_outputs.discard(number)
        if not self._open_outputs and number != STDIN:
            callbacks, self._on_drained = self._on_drained, []
            for callback in callbacks:
                callback()

    def _close(self, number: int) -> None:
        sock, self._sockets[number] = self._sockets[number], None
        if sock is not None:
            os.close(sock)
        if self._ours[number] >= 0:
            os.close(self._ours[number])
            self._ours[number] = -1


def _nothing() -> None:
    pass
