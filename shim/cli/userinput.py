"""What the user types or pipes in, on its way to a container's standard input.

Owns: reading descriptor 0 and writing the fifo, never more than the container takes; the keys that detach.
Must not know: what runs there. Called by session.py, in its loop.
"""

from __future__ import annotations

import os
import select

from shim.cli import terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 1 << 16


class UserInput:
    """From `source` to the fifo `sink`, both watched in `poll`. `ended` is called once, at the end.

    `detached`: the keys for that were typed; `gone`: the terminal was hung up.
    """

    def __init__(self, poll: select.poll, source: int, sink: int, ended: Callable[[], None]) -> None:
        self.source, self.sink = source, sink
        self.detached = self.gone = False
        self._poll = poll
        self._ended = ended
        self._keys: terminal.DetachKeys | None = None
        self._unsent = b""
        self._poll.register(source, select.POLLIN)

    def take_detach_keys(self) -> None:
        """From now on ctrl-p ctrl-q is not for the container."""
        self._keys = terminal.DetachKeys()

    def handle(self, ready: dict[int, int]) -> None:
        """Move what can be moved; `ready` is what poll(2) found."""
        if self.source in ready:
            self._read()
        elif self.sink in ready:
            self._send()

    def _read(self) -> None:
        try:
            data = os.read(self.source, BLOCK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.gone = self._keys is not None  # a raw terminal has no end of input: tty_io.c reads nothing after a hang-up
            self._poll.unregister(self.source)
            self._ended()
            return
        if self._keys:
            data, self.detached = self._keys.feed(data)
        self._unsent = data
        self._poll.unregister(self.source)  # until the container has taken this
        self._poll.register(self.sink, select.POLLOUT)
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self.sink, self._unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # the container closed its input: what the user types now goes nowhere
            self._poll.unregister(self.sink)
            self._ended()
            return
        self._poll.unregister(self.sink)
        self._poll.register(self.source, select.POLLIN)
