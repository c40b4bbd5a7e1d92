"""The way to the forkserver: asking it for a pod process, and starting it where it pays.

Owns: the name of its socket, the two messages. Must not know: what a pod process does. `start` asks (bootstrap.py), a
pod process starts one (daemon.py); forkserver.py is the other side. Light imports only: `start` loads it.

    start -> forkserver     length (4 bytes, big endian), JSON of the job, the listening socket as a descriptor
    forkserver -> start     the pod process's pid, ten digits; nothing if it will not
    start -> pod process    one byte: go

    anybody -> forkserver   length, JSON {"order": "status", "fill" or "end"}, about its pool
    forkserver -> anybody   JSON of the pool's state

The pod process does nothing before the last byte, so that a `start` that gave up waiting can make one by itself.
"""

from __future__ import annotations

import os
import sys

from shim import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

LEAVE = 5.0  # seconds for it to leave the process that started it
PATIENCE = 1.0  # seconds that `start` waits for the forkserver
ORDER_PATIENCE = 5.0
ACTION = "forkserver"
ROOM = 300  # characters of the command line that a forked pod process can write its own over
GO = b"g"
PID_DIGITS = 10


def address() -> str:
    """The socket of the forkserver that has the very code of the caller in memory."""
    from shim.light import sha256_hex

    root = paths.install_root()
    package = os.path.join(root, "shim")
    stamps = [root, *sorted(entry.path for entry in os.scandir(package) if entry.is_dir())]
    found = [(path, os.stat(path).st_ino, os.stat(path).st_mtime_ns) for path in stamps]
    code = sha256_hex(repr((found, sys.version)).encode())[:16]
    return os.path.join(paths.state_root(), f"forkserver-{code}")


class Waiting:
    """A pod process that waits for `go`."""

    __slots__ = ("_sock", "pid")

    def __init__(self, pid: int, sock: socket) -> None:
        self.pid = pid
        self._sock = sock

    def go(self) -> None:
        """Let it serve. Raises OSError if it has ended."""
        self._sock.sendall(GO)
        self._sock.close()


class Offer:
    """A forkserver that listens, and the job for it, which takes no more time once there is something to hand over."""

    __slots__ = ("_sock", "_text")

    def __init__(self, sock: socket, text: bytes) -> None:
        self._sock = sock
        self._text = text

    def give(self, listener: socket) -> Waiting | None:
        """A pod process that has `listener`; None if it will not, or is too busy."""
        from _socket import SCM_RIGHTS, SOL_SOCKET

        fds = listener.fileno().to_bytes(4, sys.byteorder)
        try:
            self._sock.sendmsg([len(self._text).to_bytes(4, "big")], [(SOL_SOCKET, SCM_RIGHTS, fds)])
            self._sock.sendall(self._text)
            answer = self._sock.recv(PID_DIGITS)
        except OSError:
            answer = b""
        if len(answer) == PID_DIGITS:
            return Waiting(int(answer), self._sock)
        self._sock.close()
        return None


def reach(job: dict[str, Any]) -> Offer | None:
    """Whoever makes a pod process for `job` (see forkserver.py); None if there is nobody."""
    from _socket import AF_UNIX, SOCK_STREAM, socket

    sock = socket(AF_UNIX, SOCK_STREAM)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(address())
    except OSError:  # there is none, or it is going, or it is too busy
        sock.close()
        return None
    from shim.light import dumps

    return Offer(sock, dumps(job))


def ensure(pool: int = 0, config_path: str = "") -> None:
    """Start a forkserver if nobody listens yet and it pays: for a pool of `pool` VMs, or if this pod is not the only one.

    `config_path` is the configuration that was named for this process, "" if none was.
    """
    if _is_there(pool) or (not pool and len(paths.pods()) < 2):
        return
    launcher = _launcher()
    if launcher:
        from shim import process

        argv = [*launcher, "-socket", address(), "-id", str(os.getpid()), ACTION, "x" * ROOM]
        environment = {**os.environ, "HAKO_CONFIG": config_path} if config_path else os.environ
        process.spawn(argv, stderr=2, env=environment).wait(LEAVE)  # it goes on in a child of its own


def order(words: str, path: str = "") -> dict[str, Any] | None:
    """Have an order about its pool carried out by the forkserver at `path` ("": ours); None if there is none.

    "status" changes nothing, "fill" begins again, "end" gives up the pool until then. What is returned: see pool.py.
    """
    import json
    from _socket import AF_UNIX, SOCK_STREAM, socket

    sock = socket(AF_UNIX, SOCK_STREAM)
    sock.settimeout(ORDER_PATIENCE)
    data = b""
    try:
        sock.connect(path or address())
        text = json.dumps({"order": words}).encode()
        sock.sendall(len(text).to_bytes(4, "big") + text)
        while chunk := sock.recv(1 << 16):
            data += chunk
        told: dict[str, Any] = json.loads(data)
        return told
    except (OSError, ValueError):
        return None
    finally:
        sock.close()


def every() -> list[str]:
    """Sockets of all forkservers, whatever code they have in memory."""
    root = paths.state_root()
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    return [os.path.join(root, name) for name in names if name.startswith("forkserver-") and not name.endswith(".lock")]


def end_others() -> None:
    """Forkservers with other code, which nobody will ever ask, shall not keep a pool."""
    ours = address()
    for path in every():
        if path != ours:
            order("end", path)


def _is_there(pool: int) -> bool:
    return order("fill") is not None if pool else is_served(address())


def _launcher() -> list[str]:
    """How this process was executed, as far as its program's name; [] if that cannot be told."""
    words = sys.orig_argv
    return words[: words.index(sys.argv[0]) + 1] if sys.argv[0] in words else []


def discard(path: str) -> None:
    """Take a pod's socket away if nobody has it any more."""
    if not is_served(path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def is_served(path: str, patience: float = PATIENCE) -> bool:
    """Whether a living process listens at `path`; `patience`: seconds that a busy one has."""
    from _socket import AF_UNIX, SOCK_STREAM, socket

    sock = socket(AF_UNIX, SOCK_STREAM)
    sock.settimeout(patience)
    try:
        return sock.connect_ex(path) == 0
    finally:
        sock.close()
