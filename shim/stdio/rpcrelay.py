"""All streams of one process through Kata's requests (ReadStdout, WriteStdin ...), for an agent without
stream connections.

Owns: a thread per stream and what ends it. Must not know: ttrpc; it is handed the calls. The same verbs as
relay.Relay. Slow by nature: 32 KiB per round trip.
"""

from __future__ import annotations

import os
import select
import threading
from typing import Protocol

from shim.errors import HakoError
from shim.stdio.fifo import close_output
from shim.stdio.pump import Sink, Tee
from shim.stdio.relay import Streams

CHUNK = 32 << 10  # what one of Kata's answers holds


class Calls(Protocol):
    """The agent's requests for one process. Each raises HakoError when the process or the agent is gone."""

    def read(self, stream: str, size: int) -> bytes:
        """At most `size` bytes of "stdout" or "stderr"; waits for them; b"" at the end."""

    def write(self, data: bytes) -> int:
        """Input; how many bytes were taken."""

    def close_stdin(self) -> None:
        """The end of the input."""


class RpcRelay:
    """Moves the streams of one process between the engine and the guest. Thread-safe."""

    def __init__(self, streams: Streams, calls: Calls) -> None:
        """Takes over `streams`."""
        self._streams = streams
        self._calls = calls
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._outputs: list[threading.Thread] = []

    def start(self) -> None:
        """Begin moving output, once the guest knows the process."""
        for name, sink in (("stdout", self._streams.stdout), ("stderr", self._streams.stderr)):
            if sink is not None:
                thread = threading.Thread(target=self._output, args=(name, sink), daemon=True)
                self._outputs.append(thread)
                thread.start()

    def start_input(self) -> None:
        """Begin moving input, once the program runs."""
        if self._streams.stdin is not None:
            threading.Thread(target=self._input, args=(self._streams.stdin.fd,), daemon=True).start()

    def close_stdin(self) -> None:
        """CloseIO: no more input than what is in the fifo now or still comes from a client. Repeatable."""
        with self._lock:
            stdin = self._streams.stdin
            if stdin is None or stdin.keep < 0:
                return
            os.close(stdin.keep)
            self._streams.stdin = stdin._replace(keep=-1)

    def drain(self, timeout: float) -> bool:
        """Wait until all output is out, at most `timeout` seconds."""
        for thread in self._outputs:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in self._outputs)

    def close(self) -> None:
        """Stop moving; a thread that waits for the guest ends with its answer. Repeatable."""
        self.close_stdin()
        self._closed.set()

    def _output(self, name: str, sink: int | Sink | Tee) -> None:
        try:
            while not self._closed.is_set():
                data = self._calls.read(name, CHUNK)
                if not data:
                    break
                self._deliver(sink, data)
        except (HakoError, OSError):  # whatever the guest or the connection says is the stream's end
            pass
        finally:
            close_output(sink)

    def _deliver(self, sink: int | Sink | Tee, data: bytes) -> None:
        """Write all of it, as fast as the reader takes it."""
        if isinstance(sink, Tee):
            sink.kept.write(data)
            sink = sink.fd
        if not isinstance(sink, int):
            sink.write(data)
            return
        poll = select.poll()
        poll.register(sink, select.POLLOUT)
        while data and not self._closed.is_set():
            if poll.poll(500):
                data = data[_write(sink, data) :]

    def _input(self, fd: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        try:
            while not self._closed.is_set():
                if not poll.poll(500):
                    continue
                data = os.read(fd, CHUNK)
                if not data:
                    self._calls.close_stdin()
                    break
                while data:
                    data = data[self._calls.write(data) :]
        except (HakoError, OSError):  # a process that is gone takes no input
            pass
        finally:
            os.close(fd)


def _write(fd: int, data: bytes) -> int:
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
