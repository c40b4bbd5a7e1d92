"""Streams between an engine's fifos and a socket: complete, bounded, ended when they should be."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket, socketpair

import pytest

from agent.linux.loop import Loop
from shim.errors import InvalidSpec
from shim.stdio.fifo import Names
from shim.stdio.relay import Relay, Streams
from tests.framework.fakeguest import end_output, send_output
from tests.framework.taskpod import Output


def connected(loop: Loop, names: Names, *, runs: bool = True) -> tuple[Relay, dict[str, socket]]:
    """A started relay and the guest's ends of its channels; whether the program `runs`."""
    streams = Streams(names)
    host, guest = {}, {}
    for name in streams.channels():
        host[name], guest[name] = socketpair(AF_UNIX, SOCK_STREAM)
    relay = Relay(loop, streams, host)
    relay.start()
    if runs:
        relay.start_input()
    return relay, guest


def received(sock: socket) -> bytes:
    """Everything until the end."""
    data = b""
    while chunk := sock.recv(1 << 20):
        data += chunk
    return data


def test_output_is_complete_and_ends(loop: Loop, tmp_path: Path) -> None:
    """Both outputs arrive in their own fifo, which ends when the guest closes its channel; then it is
    drained.
    """
    out, err = Output(tmp_path / "out"), Output(tmp_path / "err")
    relay, guest = connected(loop, Names("", out.path, err.path))
    send_output(guest["stdout"], b"out")
    send_output(guest["stderr"], b"err")
    assert not relay.drain(0.05)
    for sock in guest.values():
        end_output(sock)
    assert (out.read_all(), err.read_all()) == (b"out", b"err")
    assert relay.drain(5)


def finish(sock: socket, rest: bytes) -> None:
    """Send the rest of a frame and the end."""
    sock.settimeout(5)
    sock.sendall(rest)
    end_output(sock)


def test_an_end_without_the_end_frame_is_an_end(loop: Loop, tmp_path: Path) -> None:
    """The guest died in the middle of a piece: what came is passed on, then the client sees the end."""
    out = Output(tmp_path / "out")
    relay, guest = connected(loop, Names("", out.path))
    guest["stdout"].sendall(bytes([0, 0, 0, 9]) + b"part")
    guest["stdout"].close()
    assert out.read_all() == b"part"
    assert relay.drain(5)


def test_frames_may_be_cut_anywhere(loop: Loop, tmp_path: Path) -> None:
    """Headers and pieces that arrive byte by byte are put together; a following close loses nothing."""
    out = Output(tmp_path / "out")
    _relay, guest = connected(loop, Names("", out.path))
    for byte in bytes([0, 0, 0, 3]) + b"abc" + bytes([0, 0, 0, 2]) + b"de" + bytes(4):
        guest["stdout"].sendall(bytes([byte]))
        time.sleep(0.002)
    assert out.read_all() == b"abcde"


def test_back_pressure_reaches_the_guest(loop: Loop, tmp_path: Path) -> None:
    """A client that does not read stops the guest's writes instead of filling our memory; nothing is lost."""
    out = Output(tmp_path / "out")
    relay, guest = connected(loop, Names("", out.path))
    guest["stdout"].settimeout(0.5)
    sent = 0
    frame = (65536).to_bytes(4, "big") + b"z" * 65536
    rest = b""
    with pytest.raises(TimeoutError):
        while sent < 1 << 24:
            rest = rest or frame
            count = guest["stdout"].send(rest)
            rest, sent = rest[count:], sent + count
    assert sent < 1 << 22
    ender = threading.Thread(target=finish, args=(guest["stdout"], rest))
    ender.start()
    frames = (sent + len(rest)) // len(frame)
    assert len(out.read_all()) == frames * 65536
    ender.join()
    assert relay.drain(5)


def test_a_reader_that_comes_back_gets_what_was_written(loop: Loop, tmp_path: Path) -> None:
    """containerd restarts: while nobody reads, writing neither fails nor is lost."""
    os.mkfifo(tmp_path / "out")
    _relay, guest = connected(loop, Names("", str(tmp_path / "out")))
    send_output(guest["stdout"], b"while nobody reads")
    time.sleep(0.1)
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 100) == b"while nobody reads"
    end_output(guest["stdout"])
    os.close(reader)


def test_an_idle_stream_costs_no_cpu(loop: Loop, tmp_path: Path) -> None:
    """A stalled output and a guest that hung up on stdin do not make the loop spin."""
    os.mkfifo(tmp_path / "in")
    out = Output(tmp_path / "out")
    relay, guest = connected(loop, Names(str(tmp_path / "in"), out.path))
    guest["stdin"].close()
    guest["stdout"].settimeout(0)
    with pytest.raises(BlockingIOError):
        while True:
            guest["stdout"].send(bytes([0, 1, 0, 0]) + b"z" * 65536)
    guest["stdout"].close()
    time.sleep(0.2)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    relay.close()


def test_input_ends_with_close_stdin_after_all_data(loop: Loop, tmp_path: Path) -> None:
    """What is in the fifo at CloseIO is still forwarded, then the guest sees the end."""
    os.mkfifo(tmp_path / "in")
    relay, guest = connected(loop, Names(str(tmp_path / "in"), ""))
    with open(tmp_path / "in", "wb") as stream:
        stream.write(b"x" * 50000)
    relay.close_stdin()
    relay.close_stdin()
    guest["stdin"].settimeout(5)
    assert received(guest["stdin"]) == b"x" * 50000


def test_input_stays_in_the_fifo_until_the_program_runs(loop: Loop, tmp_path: Path) -> None:
    """Also the end of it: an engine that could write all of it before Create is answered does not ask for the end."""
    os.mkfifo(tmp_path / "in")
    relay, guest = connected(loop, Names(str(tmp_path / "in"), ""), runs=False)
    with open(tmp_path / "in", "wb") as stream:
        stream.write(b"x" * 50000)
    relay.close_stdin()
    guest["stdin"].settimeout(0.3)
    with pytest.raises(TimeoutError):
        guest["stdin"].recv(1)
    relay.start_input()
    guest["stdin"].settimeout(5)
    assert received(guest["stdin"]) == b"x" * 50000


def test_a_client_that_leaves_is_not_the_end(loop: Loop, tmp_path: Path) -> None:
    """Without CloseIO the guest's stdin stays open."""
    os.mkfifo(tmp_path / "in")
    relay, guest = connected(loop, Names(str(tmp_path / "in"), ""))
    with open(tmp_path / "in", "wb") as stream:
        stream.write(b"hi")
    guest["stdin"].settimeout(0.3)
    assert guest["stdin"].recv(10) == b"hi"
    with pytest.raises(TimeoutError):
        guest["stdin"].recv(10)
    relay.close()


def test_close_ends_everything(loop: Loop, tmp_path: Path) -> None:
    """After the cap of the drain the client's fifo ends, whoever in the guest still holds the stream."""
    out = Output(tmp_path / "out")
    relay, guest = connected(loop, Names("", out.path))
    send_output(guest["stdout"], b"some")
    time.sleep(0.1)
    relay.close()
    assert out.read_all() == b"some"
    end_output(guest["stdout"])


def test_files_are_appended_to(loop: Loop, tmp_path: Path) -> None:
    """file:// for both outputs: one file, appended, its directory made."""
    name = f"file://{tmp_path}/logs/x.log"
    for word in (b"a", b"b"):
        relay, guest = connected(loop, Names("", name, name))
        send_output(guest["stdout"], word)
        for sock in guest.values():
            end_output(sock)
        assert relay.drain(5)
    assert (tmp_path / "logs/x.log").read_bytes() == b"ab"


def test_a_cri_log_gets_both_streams(loop: Loop, tmp_path: Path) -> None:
    """cri-log:// formats and shares one file."""
    name = f"cri-log://{tmp_path}/x.log"
    relay, guest = connected(loop, Names("", name, name))
    send_output(guest["stdout"], b"o\n")
    send_output(guest["stderr"], b"e\n")
    for sock in guest.values():
        end_output(sock)
    assert relay.drain(5)
    lines = sorted(line.split(" ", 1)[1] for line in (tmp_path / "x.log").read_text().splitlines())
    assert lines == ["stderr F e", "stdout F o"]


def test_a_process_without_streams_has_its_output_discarded(loop: Loop) -> None:
    """Empty names mean null: the guest may write as much as it likes."""
    relay, guest = connected(loop, Names())
    assert list(guest) == ["stdout"]
    guest["stdout"].settimeout(5)
    send_output(guest["stdout"], b"z" * (1 << 21))
    end_output(guest["stdout"])
    assert relay.drain(5)


def test_a_terminal_has_no_stderr(tmp_path: Path) -> None:
    """Even if an engine names one."""
    os.mkfifo(tmp_path / "out")
    streams = Streams(Names("", str(tmp_path / "out"), str(tmp_path / "none"), terminal=True))
    assert streams.channels() == ["stdout"]
    streams.close()


@pytest.mark.parametrize("names", [Names("", "nope://x"), Names("cri-log:///x"), Names("", "", "x://y")])
def test_unknown_schemes_are_refused(names: Names) -> None:
    """With the stream's name, and nothing stays open."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InvalidSpec, match="std"):
        Streams(names)
    assert len(os.listdir("/proc/self/fd")) == before
