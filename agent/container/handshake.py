"""What the agent and the child that becomes a container's process say to each other: typed, bounded messages.

    child -> agent                              agent -> child
    MAP_IDS   in a new user namespace           MAPPED    the mappings are written
    PID       the real init is this pid         ADOPTED   go on (the process that forked it is reaped)
    TERMINAL  with the master's descriptor
    PREPARED  mounts are made                   PROCEED   cgroup limits set, hooks run; state JSON for hooks
    READY     program found, root is its own    START     limits set; state JSON for hooks
                                                PRACTISE  plan this container, which will not be (standby.py)
    STANDING_BY  it has                         BECOME    which container, with its streams' descriptors
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAP_IDS, PID, TERMINAL, PREPARED, READY, FAILED, STANDING_BY = range(1, 8)
MAPPED, ADOPTED, PROCEED, START, PRACTISE, BECOME = range(11, 17)
NAMES = {
    MAP_IDS: "MAP_IDS", PID: "PID", TERMINAL: "TERMINAL", PREPARED: "PREPARED", READY: "READY",
    FAILED: "FAILED", STANDING_BY: "STANDING_BY", MAPPED: "MAPPED", ADOPTED: "ADOPTED", PROCEED: "PROCEED",
    START: "START", PRACTISE: "PRACTISE",
    BECOME: "BECOME",
}  # fmt: skip
MAX_MESSAGE = 64 * 1024
MAX_TEXT = 2048
MAX_FDS = 3


class Message:
    """One message; `fds` are the descriptors that came with it."""

    __slots__ = ("fds", "kind", "payload")

    def __init__(self, kind: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        self.kind = kind
        self.payload = payload
        self.fds = fds


class Channel:
    """One end of the conversation."""

    __slots__ = ("_socket",)

    def __init__(self, sock: _socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def send(self, kind: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send one message, with copies of at most MAX_FDS descriptors. BrokenPipeError: nobody is there."""
        data = bytes((kind,)) + payload
        if len(data) > MAX_MESSAGE:
            raise OSError(errno.EMSGSIZE, f"{NAMES[kind]} of {len(data)} bytes")
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        self._socket.sendmsg([data], rights, _socket.MSG_NOSIGNAL)

    def receive(self) -> Message | None:
        """Wait for one message; None at the end of the conversation."""
        room = _socket.CMSG_SPACE(4 * MAX_FDS)
        data, ancillary, _, _ = self._socket.recvmsg(MAX_MESSAGE, room, _socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None
        packed = ancillary[0][2] if ancillary else b""
        return Message(data[0], data[1:], struct.unpack(f"{len(packed) // 4}i", packed))

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
