"""Runs the network child: sends one request, waits for the answer, words its failure.

Owns: the child's life and deadline, and NetworkError. Must not know: netlink, what the verbs do. Called by
netns.py and nat.py. `start` returns at once, so that the child's start-up (0.1 s) runs beside other work;
`Pending.result` waits.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from shim import paths, process
from shim.errors import HakoError, Timeout
from shim.network import wire

DEFAULT_TIMEOUT = 15.0
UNDO_SECONDS = 2.0


class NetworkError(HakoError):
    """Something in a network namespace failed; `errno` is the kernel's number, 0 if it was not the kernel."""

    def __init__(
        self, message: str, *, step: str = "", object: str = "", hint: str = "", errno: int = 0
    ) -> None:
        super().__init__(message, step=step, object=object, hint=hint)
        self.errno = errno


class Pending:
    """A request on its way; `result` or `cancel` must be called, once."""

    def __init__(self, child: process.Child, sock: socket.socket, what: str, timeout: float) -> None:
        self._child = child
        self._sock = sock
        self._what = what
        self._left = process.deadline(timeout)
        self._timeout = timeout

    def result(self) -> tuple[dict[str, Any], list[int]]:
        """The answer and its descriptors (the caller's). Raises NetworkError, Timeout."""
        try:
            self._sock.settimeout(self._left() or 0.001)
            message, fds = wire.receive(self._sock)
        except TimeoutError:
            raise Timeout(
                f"no answer within {self._timeout:g} s", step="network", object=self._what
            ) from None
        except (wire.BrokenMessage, OSError, ValueError) as exc:
            raise self._died(exc) from exc
        else:
            self._child.wait(1.0)  # it ends by itself; a signal now would make it undo what it did
        finally:
            self.cancel()
        if "error" in message:
            raise NetworkError(
                **{key: message["error"][key] for key in ("message", "step", "object", "errno")}
            )
        return message["result"], fds

    def _died(self, reason: Exception) -> NetworkError:
        """The child ended without an answer: its last line says why, a traceback's too."""
        self._child.wait(self._left())
        said = self._child.stderr_tail().strip().splitlines()
        return NetworkError(said[-1] if said else str(reason), step="network", object=self._what)

    def cancel(self) -> None:
        """End the child and forget the answer; it undoes what it has done so far."""
        self._sock.close()
        self._child.terminate(UNDO_SECONDS)
        self._child.close()


def start(verb: str, request: dict[str, Any], fds: Sequence[int], timeout: float, what: str) -> Pending:
    """Start the child with one request. `what` names the object in errors."""
    ours, theirs = socket.socketpair()
    try:
        child = process.spawn(_argv(), stdin=theirs.fileno())
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    pending = Pending(child, ours, what, timeout)
    try:
        ours.settimeout(timeout)
        wire.send(ours, {"verb": verb, **request}, fds)
    except OSError as exc:
        failure = pending._died(exc)
        pending.cancel()
        raise failure from exc
    return pending


def call(verb: str, request: dict[str, Any], fds: Sequence[int], timeout: float, what: str) -> dict[str, Any]:
    """`start` and `result` for verbs that answer without descriptors."""
    result, received = start(verb, request, fds, timeout, what).result()
    for fd in received:
        os.close(fd)
    return result


def _argv() -> list[str]:
    """The system's interpreter (a virtual environment's start-up alone costs 10 ms) with our module path."""
    interpreter = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "child.py")
    return [interpreter, "-IS", script, json.dumps([paths.install_root(), *filter(os.path.isdir, sys.path)])]
