"""QEMU's monitor protocol over a connected socket: commands with deadlines, events to a callback.

Owns: the wire (JSON lines, ids, descriptors), the handshake, bounds. Must not know: what commands mean.
Called by driver.py. Halves: `execute` is for any thread but the watching one, one command at a time;
`_receive` and what it calls run in the watching thread, as does the event callback, which therefore must
not call `execute`.
"""

from __future__ import annotations

import array
import json
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from shim.errors import HakoError, Timeout, Unavailable
from shim.process import deadline
from shim.watch import watcher

MESSAGE_BYTES = 1 << 20  # query-qmp-schema has 160 KB, nothing else that we ask for comes near
DEADLINE = 10.0  # seconds for a command; QEMU answers in microseconds unless its main loop hangs


class QmpError(HakoError):
    """QEMU refused a command. `error_class` as QEMU words it (GenericError, DeviceNotFound, ...)."""

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(description, step="QMP", object=command)
        self.error_class = error_class


class Qmp:
    """A session. Owns `sock`. `on_event(name, data)` is called in the watching thread."""

    def __init__(self, sock: socket.socket, on_event: Callable[[str, dict[str, Any]], None]) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._on_event = on_event
        self._buffer = bytearray()
        self._skipping = False
        self._executing = threading.Lock()
        self._changed = threading.Condition()
        self._ready = False  # capabilities are negotiated
        self._ended = ""
        self._last_id = 0
        self._answers: dict[int, dict[str, Any]] = {}
        watcher().add(sock.fileno(), self._receive)

    def execute(self, command: str, *, timeout: float = DEADLINE, fds: Sequence[int] = (), **arguments: Any) -> Any:
        """Execute a command and return its answer; `fds` go along (getfd). Underscores in names become
        dashes.

        Raises QmpError if QEMU refuses, Timeout at the deadline (it may still happen), Unavailable if QEMU
        is gone.
        """
        left = deadline(timeout)
        with self._executing:
            self._wait(lambda: self._ready, left, command)
            self._last_id += 1
            number = self._last_id
            request = {"execute": command, "arguments": arguments, "id": number}
            self._send(json.dumps(request).encode() + b"\r\n", fds, command)
            self._wait(lambda: number in self._answers, left, command)
            answer = self._answers.pop(number)
        if "error" in answer:
            raise QmpError(command, answer["error"].get("class", ""), answer["error"].get("desc", ""))
        return answer.get("return")

    def close(self) -> None:
        """End the session; a command that waits raises Unavailable."""
        watcher().remove(self._sock.fileno())
        self._end("the session was closed")
        self._sock.close()

    def _wait(self, happened: Callable[[], bool], left: Callable[[], float], command: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or happened(), left())
            if happened():
                return
            if self._ended:
                raise Unavailable(self._ended, step="QMP", object=command)
        raise Timeout("QEMU does not answer", step="QMP", object=command)

    def _send(self, data: bytes, fds: Sequence[int], command: str) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            if self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL) != len(data):
                raise BlockingIOError
        except BlockingIOError as exc:  # 200 KB of commands that QEMU did not read
            raise Timeout("QEMU does not read its commands", step="QMP", object=command) from exc
        except OSError as exc:
            raise Unavailable("QEMU has ended", step="QMP", object=command) from exc

    def _receive(self) -> bool:
        """Take what is there. False at the end."""
        while True:
            try:
                chunk = self._sock.recv(65536)
            except BlockingIOError:
                return True
            except OSError:
                chunk = b""
            if not chunk:
                self._end("QEMU has ended")
                return False
            self._feed(chunk)

    def _feed(self, chunk: bytes) -> None:
        self._buffer += chunk
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        for line in lines:
            if not self._skipping:
                self._message(bytes(line))
            self._skipping = False
        if len(rest) > MESSAGE_BYTES:
            self._skipping = True
        if self._skipping:
            self._buffer.clear()

    def _message(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return
        if not isinstance(message, dict):
            return
        if "QMP" in message:
            self._negotiate()
        elif "event" in message:
            self._on_event(message["event"], message.get("data", {}))
        elif message.get("id") == 0:
            self._set_ready()
        elif isinstance(message.get("id"), int):
            self._answer(message["id"], message)

    def _negotiate(self) -> None:
        try:
            self._sock.send(b'{"execute": "qmp_capabilities", "id": 0}\r\n', socket.MSG_NOSIGNAL)
        except OSError:
            pass  # it has just ended: the next recv says so

    def _set_ready(self) -> None:
        with self._changed:
            self._ready = True
            self._changed.notify_all()

    def _answer(self, number: int, message: dict[str, Any]) -> None:
        with self._changed:
            if number == self._last_id:  # else somebody stopped waiting for it
                self._answers = {number: message}
                self._changed.notify_all()

    def _end(self, reason: str) -> None:
        with self._changed:
            self._ended = self._ended or reason
            self._changed.notify_all()
