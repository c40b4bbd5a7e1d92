"""Flows between descriptors: frames out, raw bytes in, back-pressure, ends. Pipes and socket pairs only."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from agent.linux.loop import Loop
from agent.linux.vsock import PACKET_MAX, send_max
from agent.process import pump


class Ended:
    """Counts calls of on_end."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop for one test."""
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def ended() -> Ended:
    """The flow's on_end."""
    return Ended()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose ends a test may have closed."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass


def pair() -> tuple[socket.socket, socket.socket]:
    """(the flow's end, the host's end)"""
    ours, theirs = socket.socketpair()
    os.set_blocking(theirs.fileno(), False)
    return ours, theirs


def frames(data: bytes) -> list[bytes]:
    """Frames of a byte string that ends at a frame's end."""
    found = []
    while data:
        size = struct.unpack_from(">I", data)[0]
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found


def run(loop: Loop, until: Callable[[], bool], turns: int = 100000) -> None:
    """Run the loop until the condition holds."""
    for _ in range(turns):
        if until():
            return
        loop.run_once(0.05)
    raise AssertionError("never came to it")


def read_some(sock: socket.socket, into: bytearray) -> None:
    """What is there now."""
    try:
        into += sock.recv(1 << 20)
    except BlockingIOError:
        pass


def test_output_is_framed_and_ends_with_length_zero(loop: Loop, ended: Ended, pipe: tuple[int, int]) -> None:
    """The end is in the stream, because the socket's close may overtake its last bytes."""
    ours, theirs = pair()
    flow = pump.Output(loop, pipe[0], ours.fileno(), ended)
    flow.begin()
    os.write(pipe[1], b"hello")
    os.close(pipe[1])
    run(loop, lambda: ended.count > 0)
    assert frames(theirs.recv(100)) == [b"hello", b""]
    assert ended.count == 1


def test_output_waits_for_a_slow_reader_and_keeps_nothing(
    loop: Loop, ended: Ended, pipe: tuple[int, int]
) -> None:
    """While the host does not read, the process's pipe fills and the process stops; then all arrives."""
    ours, theirs = pair()
    pump.Output(loop, pipe[0], ours.fileno(), ended).begin()
    os.set_blocking(pipe[1], False)
    sent = 0
    for _ in range(200):
        try:
            sent += os.write(pipe[1], bytes(range(256)) * 64)
        except BlockingIOError:
            pass
        loop.run_once(0)
    with pytest.raises(BlockingIOError):
        os.write(pipe[1], bytes(70000))
    os.close(pipe[1])
    got = bytearray()

    def over() -> bool:
        read_some(theirs, got)
        return ended.count > 0

    run(loop, over)
    read_some(theirs, got)
    assert b"".join(frames(bytes(got))) == (bytes(range(256)) * (sent // 256 + 1))[:sent]


def test_two_flows_do_not_mix_their_buffers(loop: Loop) -> None:
    """Both wait in the middle of a frame; the buffer that they share must hold nothing of theirs."""
    flows = []
    for letter in (b"a", b"b"):
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        ours, theirs = pair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        done = Ended()
        pump.Output(loop, reader, ours.fileno(), done).begin()
        flows.append((letter, writer, theirs, done, bytearray(), ours, [300_000]))

    def step() -> bool:
        for letter, writer, theirs, _, got, _, left in flows:
            try:
                if left[0]:
                    left[0] -= os.write(writer, letter * min(left[0], 10_000))
                    if not left[0]:
                        os.close(writer)
            except BlockingIOError:
                pass
            read_some(theirs, got)
        return all(done.count for _, _, _, done, *_ in flows)

    run(loop, step)
    for letter, _, theirs, _, got, *_ in flows:
        read_some(theirs, got)
        assert b"".join(frames(bytes(got))) == letter * 300_000


def test_an_output_that_fills_its_pipe_gets_a_larger_one(loop: Loop, ended: Ended, pipe: tuple[int, int]) -> None:
    """Then writer and flow take turns less often; frames grow with the pipe, and a stalled one is not spoiled by others."""
    ours, theirs = pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    pump.Output(loop, pipe[0], ours.fileno(), ended).begin()
    os.set_blocking(pipe[1], False)
    small = fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ)
    data = bytes(range(251)) * 20_000
    left, got = memoryview(data), bytearray()
    while left:
        try:
            left = left[os.write(pipe[1], left) :]
        except BlockingIOError:
            loop.run_once(0)
            read_some(theirs, got)
        other_output(loop)
    os.close(pipe[1])
    while not ended.count:
        loop.run_once(0)
        read_some(theirs, got)
    read_some(theirs, got)
    pieces = frames(bytes(got))
    assert b"".join(pieces) == data
    assert len(pieces[0]) == small and small < max(map(len, pieces)) < 1 << 20
    assert fcntl.fcntl(pipe[0], fcntl.F_GETPIPE_SZ) == 1 << 20


def other_output(loop: Loop) -> None:
    """A stream of another process: a frame of 60 kB."""
    reader, writer = os.pipe()
    ours, theirs = pair()
    ended = Ended()
    pump.Output(loop, reader, ours.fileno(), ended).begin()
    os.write(writer, b"o" * 60_000)
    os.close(writer)
    run(loop, lambda: ended.count == 1)
    assert frames(theirs.recv(1 << 20))[0] == b"o" * 60_000
    os.close(reader)


def test_output_ends_when_the_host_is_gone(loop: Loop, ended: Ended, pipe: tuple[int, int]) -> None:
    """Its owner then closes the pipe, and the process gets EPIPE, as with any closed pipe."""
    ours, theirs = pair()
    pump.Output(loop, pipe[0], ours.fileno(), ended).begin()
    theirs.close()
    os.write(pipe[1], b"x")
    run(loop, lambda: ended.count == 1)


def test_input_is_raw(loop: Loop, ended: Ended, pipe: tuple[int, int]) -> None:
    """Bytes as they are; the host's close is the end."""
    ours, theirs = pair()
    pump.Input(loop, ours.fileno(), pipe[1], ended).begin()
    theirs.send(b"some")
    theirs.send(b"thing")
    theirs.close()
    run(loop, lambda: ended.count == 1)
    assert os.read(pipe[0], 100) == b"something"


def test_input_waits_for_a_process_that_does_not_read(
    loop: Loop, ended: Ended, pipe: tuple[int, int]
) -> None:
    """The host's socket fills; nothing is lost and the loop sleeps meanwhile."""
    ours, theirs = pair()
    pump.Input(loop, ours.fileno(), pipe[1], ended).begin()
    data = os.urandom(1 << 20)
    digest, sent, got = hashlib.sha1(), 0, 0
    while True:
        try:
            sent += theirs.send(data[sent : sent + 65536])
        except BlockingIOError:
            loop.run_once(0)
            try:
                sent += theirs.send(data[sent : sent + 1])
            except BlockingIOError:
                break
    while got < len(data):
        loop.run_once(0.01)
        piece = os.read(pipe[0], 65536)
        digest.update(piece)
        got += len(piece)
        try:
            sent += theirs.send(data[sent : sent + 65536]) if sent < len(data) else 0
        except BlockingIOError:
            pass
    assert digest.digest() == hashlib.sha1(data).digest()


def test_input_between_sockets_is_copied(loop: Loop, ended: Ended) -> None:
    """Where neither end is a pipe (a terminal), splice refuses, and bytes are read and written."""
    ours, theirs = pair()
    sink, reader = pair()
    pump.Input(loop, ours.fileno(), sink.fileno(), ended).begin()
    theirs.send(b"typed")
    theirs.close()
    run(loop, lambda: ended.count == 1)
    assert reader.recv(100) == b"typed"


def test_input_ends_when_the_process_closes_its_stdin(
    loop: Loop, ended: Ended, pipe: tuple[int, int]
) -> None:
    """EPIPE ends the flow and not the agent."""
    ours, theirs = pair()
    pump.Input(loop, ours.fileno(), pipe[1], ended).begin()
    os.close(pipe[0])
    theirs.send(b"x")
    run(loop, lambda: ended.count == 1)


class CountingOutput(pump.Output):
    """Counts how often the loop wakes it."""

    woken = 0

    def run(self, _events: int = 0) -> None:
        """As Output."""
        self.woken += 1
        super().run()


def test_a_flow_that_waits_does_not_spin(loop: Loop, ended: Ended, pipe: tuple[int, int]) -> None:
    """A hung-up source whose data cannot be delivered yet must not be reported again and again."""
    ours, theirs = pair()
    flow = CountingOutput(loop, pipe[0], ours.fileno(), ended)
    with pytest.raises(BlockingIOError):
        while True:
            ours.send(bytes(65536))
    os.write(pipe[1], bytes(60000))
    os.close(pipe[1])
    flow.begin()
    for _ in range(10):
        loop.run_once(0.01)
    assert flow.woken == 1
    theirs.close()


def test_quiet_end_waits_for_what_is_not_delivered(loop: Loop, ended: Ended, pipe: tuple[int, int]) -> None:
    """A terminal's quiet time counts from its last output, and nothing that was read is dropped."""
    ours, theirs = pair()
    flow = pump.Output(loop, pipe[0], ours.fileno(), ended)
    flow.begin()
    flow.end_when_quiet(0.05)
    os.write(pipe[1], b"late")
    run(loop, lambda: ended.count == 1)
    assert frames(theirs.recv(100)) == [b"late", b""]


def test_the_host_closes_first(loop: Loop) -> None:
    """After the end the socket stays until the host has closed, or the time is over."""
    ours, theirs = pair()
    fd = ours.detach()
    pump.close_after_peer(loop, fd, 5)
    loop.run_once(0.02)
    os.fstat(fd)
    theirs.close()
    loop.run_once(0.1)
    with pytest.raises(OSError):
        os.fstat(fd)


def test_the_host_that_never_closes(loop: Loop) -> None:
    """It has a bounded time."""
    ours, theirs = pair()
    fd = ours.detach()
    pump.close_after_peer(loop, fd, 0.05)
    loop.run_once(0.02)
    run(loop, lambda: not os.path.exists(f"/proc/self/fd/{fd}"), turns=20)
    theirs.close()


def test_no_send_is_larger_than_a_packet(loop: Loop, ended: Ended) -> None:
    """What was in the pipe is one frame, in sends that every vsock device takes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    source, writer = os.pipe()
    os.write(writer, bytes(60_000))
    os.close(writer)
    pump.Output(loop, source, ours.fileno(), ended).begin()
    sizes: list[int] = []
    with ours, theirs:
        theirs.settimeout(0)
        while not ended.count:
            loop.run_once(0.5)
            while True:
                try:
                    sizes.append(len(theirs.recv(1 << 20)))
                except BlockingIOError:
                    break
    os.close(source)
    assert sum(sizes) == 60_000 + 2 * pump.HEADER  # with the end's
    assert len(sizes) > 2 and max(sizes) <= PACKET_MAX < 32 << 10


def test_a_packet_that_finds_no_memory_is_sent_in_smaller_ones(
    loop: Loop, ended: Ended, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest whose memory is in pieces has no 128 KiB in a row; the output is whole all the same."""
    ours, theirs = pair()
    monkeypatch.setattr(pump, "SEND_MAX", 1 << 20)
    real_write, sizes = os.write, list[int]()

    def write(fd: int, data: memoryview) -> int:
        if fd == ours.fileno():
            sizes.append(len(data))
            if len(data) > PACKET_MAX:
                raise OSError(errno.ENOMEM, "no memory")
        return real_write(fd, data)

    monkeypatch.setattr(os, "write", write)
    pump.Output(loop, pipe[0], ours.fileno(), ended).begin()
    real_write(pipe[1], b"x" * 60_000)
    os.close(pipe[1])
    run(loop, lambda: ended.count == 1)
    assert frames(theirs.recv(1 << 20)) == [b"x" * 60_000, b""]
    assert sizes == [60_004, PACKET_MAX, PACKET_MAX, 60_004 - 2 * PACKET_MAX, pump.HEADER]


@pytest.mark.parametrize(
    ("release", "bound"),
    [
        ("6.1.192-hako", 1 << 20), ("5.15.0", 1 << 20), ("6.2.0", PACKET_MAX), ("6.12.130+deb13-cloud-amd64", PACKET_MAX),
        ("7.0.1", PACKET_MAX), ("strange", PACKET_MAX), ("6.x", PACKET_MAX),
    ],
)  # fmt: skip
def test_only_a_kernel_that_is_known_gets_large_sends(release: str, bound: int) -> None:
    """A kernel that chains descriptors loses them; one that does not cuts the packets itself."""
    assert send_max(release) == bound
