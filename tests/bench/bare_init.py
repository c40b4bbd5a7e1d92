"""Runs as /init of the bare guest: a shell, a source of bytes and an echo on vsock ports, the share mounted, nothing of hako's.

Knows ports and the share's place. Booted by bare.py; the agent package is there for its system calls only.
"""

from __future__ import annotations

import os
import signal
import socket

from agent import init
from agent.api import LEVEL
from agent.linux import syscalls, vsock

SHELL_PORT = 1024
STREAM_PORT = 1025
ECHO_PORT = 1026
SHARE = "/run/kata-containers/shared/containers"
CHUNK = 64 << 10


def main() -> None:
    """PID 1: serve until the machine is stopped."""
    init.setup()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.makedirs(SHARE)
    syscalls.mount("kataShared", SHARE, "virtiofs", 0)
    shells = listen(SHELL_PORT)
    for port, work in ((STREAM_PORT, stream), (ECHO_PORT, echo)):
        listener = listen(port)
        if os.fork() == 0:
            serve(listener, work)
    print(f"hako-agent: ready {LEVEL}", flush=True)
    serve(shells, shell)


def listen(port: int) -> socket.socket:
    """A listening vsock socket."""
    sock = vsock.listen(port)
    return socket.socket(fileno=sock.detach())


def serve(listener: socket.socket, work: object) -> None:
    """A process for each connection, for ever."""
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            work(connection)  # type: ignore[operator]
            os._exit(0)
        connection.close()


def shell(connection: socket.socket) -> None:
    """busybox sh on the connection."""
    for fd in (0, 1, 2):
        os.dup2(connection.fileno(), fd)
    os.execv("/bin/busybox", ["sh"])


def echo(connection: socket.socket) -> None:
    """What comes goes back, until the peer hangs up."""
    while data := connection.recv(4096):
        connection.sendall(data)


def stream(connection: socket.socket) -> None:
    """As many zeros as the line asks for, of the program that writes them in a container, too.

    Then wait for the peer to hang up (the daemon loses what a closing guest sent).
    """
    line = b""
    while not line.endswith(b"\n"):
        line += connection.recv(64)
    if os.fork() == 0:
        os.dup2(connection.fileno(), 1)
        os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
        os.execv("/bin/busybox", zeros(int(line)))
    connection.recv(1)


def zeros(size: int) -> list[str]:
    """`dd` that writes so many bytes (a multiple of CHUNK) to its stdout."""
    return ["dd", "if=/dev/zero", f"bs={CHUNK}", f"count={size // CHUNK}"]
