"""All streams of one process: its sockets to the guest and the engine's ends, and when they are finished.

Owns: pairing channels with names, CloseIO (before or after the start), the drain at exit. Must not know:
how the sockets reached the guest or what runs there. Called by sandbox/process.py from any thread; the
moving itself happens in the loop of the pod process.

A channel is one-way. stdin: CloseIO drops our writing end of the fifo; the pump then sees the end as soon
as what is in the fifo was forwarded and no client writes any more, and closes the socket, which the guest
reads as the end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from socket import socket

from agent.linux.loop import Loop
from shim.stdio.binary import Owner
from shim.stdio.fifo import Discard, Input, Names, close_output, open_input, open_outputs
from shim.stdio.pump import Pump, Sink, Tee


class Streams:
    """The engine's ends of a process's streams, opened but not yet connected. `close` if they never are."""

    def __init__(self, names: Names, owner: Owner = Owner()) -> None:  # noqa: B008 - immutable
        self.names = names
        self.stdin: Input | None = open_input(names.stdin) if names.stdin else None
        try:
            self.stdout, self.stderr = open_outputs(names, owner)
        except BaseException:
            self.close_stdin()
            raise
        if self.stdin is None and self.stdout is None and self.stderr is None:
            self.stdout = Discard()  # a process without any channel would be served by Kata's ReadStdout

    def channels(self) -> list[str]:
        """The streams that need a channel to the guest."""
        ends = (("stdin", self.stdin), ("stdout", self.stdout), ("stderr", self.stderr))
        return [name for name, end in ends if end is not None]

    def close(self) -> None:
        """Close what was opened."""
        self.close_stdin()
        close_output(self.stdout)
        close_output(self.stderr)
        self.stdout = self.stderr = None

    def close_stdin(self) -> None:
        """Close stdin only."""
        stdin, self.stdin = self.stdin, None
        for fd in stdin or ():
            if fd >= 0:
                os.close(fd)


class Relay:
    """Moves the streams of one process between the engine and the guest. Thread-safe."""

    def __init__(self, loop: Loop, streams: Streams, sockets: Mapping[str, socket]) -> None:
        """Takes over `streams` and the `sockets`, one for each of `streams.channels()`."""
        self._loop = loop
        self._lock = threading.Lock()
        self._keep = -1
        self._drained = threading.Event()
        self._input: Pump | None = None
        self._outputs: set[Pump] = set()
        if streams.stdin is not None:
            self._keep = streams.stdin.keep
            self._input = Pump(loop, streams.stdin.fd, sockets["stdin"].detach(), self._input_ended)
        for name, sink in (("stdout", streams.stdout), ("stderr", streams.stderr)):
            if sink is not None:
                self._outputs.add(self._output(sockets[name], sink))
        if not self._outputs:
            self._drained.set()

    def _output(self, source: socket, sink: int | Sink | Tee) -> Pump:
        return Pump(self._loop, source.detach(), sink, self._output_ended, framed=True)

    def start(self) -> None:
        """Begin moving output, once the guest knows the channels."""
        self._loop.call_threadsafe(self._start)

    def start_input(self) -> None:
        """Begin moving input, once the program runs. What was ended by then has none.

        Not before: ctr asks for the end of the input (CloseIO) only if it reads that after Create has been answered
        (containerd 1.6 and 2.2, cmd/ctr/commands/tasks), and a channel takes a megabyte.
        """
        if self._input is not None:
            self._loop.call_threadsafe(self._input.start)

    def close_stdin(self) -> None:
        """CloseIO: no more input than what is in the fifo now or still comes from a client. Repeatable."""
        with self._lock:
            keep, self._keep = self._keep, -1
        if keep >= 0:
            os.close(keep)

    def drain(self, timeout: float) -> bool:
        """Wait until all output is out, at most `timeout` seconds."""
        return self._drained.wait(timeout)

    def close(self) -> None:
        """Close everything; output that is still on its way is lost. Repeatable."""
        self.close_stdin()
        self._loop.call_threadsafe(self._close)

    def _start(self) -> None:
        for pump in tuple(self._outputs):
            pump.start()

    def _close(self) -> None:
        for pump in (self._input, *tuple(self._outputs)):
            if pump is not None:
                pump.close()

    def _input_ended(self, _pump: Pump) -> None:
        self.close_stdin()

    def _output_ended(self, pump: Pump) -> None:
        self._outputs.discard(pump)
        if not self._outputs:
            self._drained.set()
