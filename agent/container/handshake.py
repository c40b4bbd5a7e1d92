"""What the agent and the child that becomes a container's process say to each other: typed, bounded messages.

    child -> agent                              agent -> child
    MAP_IDS   in a new user namespace           MAPPED    the mappings are written
    PID       the real init is this pid         ADOPTED   go on (the process that forked it is reaped)
    TERMINAL  with the master's descriptor
    PREPARED  mounts are made                   PROCEED   cgroup limits set, hooks run; state JSON for hooks
    READY     program found, root is its own    START     limits set; state JSON for hooks
    FAILED    step, errno, path, detail
    end of file after START: the program runs (the socket closes at execve)

A sequenced-packet socket pair: one packet is one message. Used by spawn.py (agent) and child.py (child).
"""

from __future__ import annotations

import _socket
import errno
import select
import struct
import time

from agent.errors import DeadlineExceeded, StepError

MAP_IDS, PID, TERMINAL, PREPARED, READY, FAILED = range(1, 7)
MAPPED, ADOPTED, PROCEED, START = range(11, 15)
NAMES = {
    MAP_IDS: "MAP_IDS", PID: "PID", TERMINAL: "TERMINAL", PREPARED: "PREPARED", READY: "READY",
    FAILED: "FAILED", MAPPED: "MAPPED", ADOPTED: "ADOPTED", PROCEED: "PROCEED", START: "START",
}  # fmt: skip
MAX_MESSAGE = 64 * 1024
MAX_TEXT = 2048


class Message:
    """One message; `fd` is -1 or a descriptor that came with it."""

    __slots__ = ("fd", "kind", "payload")

    def __init__(self, kind: int, payload: bytes = b"", fd: int = -1) -> None:
        self.kind = kind
        self.payload = payload
        self.fd = fd


class Channel:
    """One end of the conversation."""

    __slots__ = ("_socket",)

    def __init__(self, sock: _socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def send(self, kind: int, payload: bytes = b"", fd: int = -1) -> None:
        """Send one message, with a descriptor unless `fd` is -1. BrokenPipeError: nobody is there."""
        data = bytes((kind,)) + payload
        if len(data) > MAX_MESSAGE:
            raise OSError(errno.EMSGSIZE, f"{NAMES[kind]} of {len(data)} bytes")
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", fd))] if fd >= 0 else []
        self._socket.sendmsg([data], rights, _socket.MSG_NOSIGNAL)

    def receive(self) -> Message | None:
        """Wait for one message; None at the end of the conversation."""
        room = _socket.CMSG_SPACE(4)
        data, ancillary, _, _ = self._socket.recvmsg(MAX_MESSAGE, room, _socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None
        fd = struct.unpack("i", ancillary[0][2][:4])[0] if ancillary else -1
        return Message(data[0], data[1:], fd)

    def receive_within(self, seconds: float, what: str) -> Message | None:
        """As receive(); DeadlineExceeded when nothing comes in time."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        if not poll.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            raise DeadlineExceeded(what, seconds)
        return self.receive()

    def close(self) -> None:
        """Close this end; harmless when it is closed."""
        self._socket.close()


def pair() -> tuple[Channel, Channel]:
    """(agent's end, child's end)."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    return Channel(ours), Channel(theirs)


def pack_failure(error: StepError) -> bytes:
    """The payload of FAILED."""
    texts = [text[:MAX_TEXT] for text in (error.step, error.path, error.detail)]
    return struct.pack("i", error.errno) + "\0".join(texts).encode("utf-8", "surrogateescape")


def unpack_failure(payload: bytes) -> StepError:
    """The error that a child reported."""
    number = struct.unpack_from("i", payload)[0]
    step, path, detail = payload[4:].decode("utf-8", "surrogateescape").split("\0")
    return StepError(step, number, path, detail)
