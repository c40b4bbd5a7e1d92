"""Streams between an engine's fifos and a socket: complete, bounded, ended when they should be."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket, socketpair

import pytest

from agent.linux.loop import Loop
from shim.errors import InvalidSpec
from shim.stdio.fifo import Names
from shim.stdio.relay import Relay, Streams
from tests.framework.taskpod import Output


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A running loop; a callback that raises fails the test."""
    failures: list[Exception] = []
    loop = Loop(on_error=failures.append)
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield loop
    loop.stop()
    thread.join(5)
    assert not failures


def connected(loop: Loop, names: Names) -> tuple[Relay, dict[str, socket]]:
    """A started relay and the guest's ends of its channels."""
    streams = Streams(names)
    host, guest = {}, {}
    for name in streams.channels():
        host[name], guest[name] = socketpair(AF_UNIX, SOCK_STREAM)
    relay = Relay(loop, streams, host)
    relay.start()
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
    guest["stdout"].sendall(b"out")
    guest["stderr"].sendall(b"err")
    assert not relay.drain(0.05)
    for sock in guest.values():
        sock.close()
    assert (out.read_all(), err.read_all()) == (b"out", b"err")
    assert relay.drain(5)


def test_back_pressure_reaches_the_guest(loop: Loop, tmp_path: Path) -> None:
    """A client that does not read stops the guest's writes instead of filling our memory; nothing is lost."""
    out = Output(tmp_path / "out")
    relay, guest = connected(loop, Names("", out.path))
    guest["stdout"].settimeout(0.5)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 1 << 24:
            sent += guest["stdout"].send(b"z" * 65536)
    assert sent < 1 << 22
    guest["stdout"].close()
    assert len(out.read_all()) == sent
    assert relay.drain(5)


def test_a_reader_that_comes_back_gets_what_was_written(loop: Loop, tmp_path: Path) -> None:
    """containerd restarts: while nobody reads, writing neither fails nor is lost."""
    os.mkfifo(tmp_path / "out")
    _relay, guest = connected(loop, Names("", str(tmp_path / "out")))
    guest["stdout"].sendall(b"while nobody reads")
    time.sleep(0.1)
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 100) == b"while nobody reads"
    guest["stdout"].close()
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
            guest["stdout"].send(b"z" * 65536)
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
    guest["stdout"].sendall(b"some")
    time.sleep(0.1)
    relay.close()
    assert out.read_all() == b"some"
    guest["stdout"].close()


def test_files_are_appended_to(loop: Loop, tmp_path: Path) -> None:
    """file:// for both outputs: one file, appended, its directory made."""
    name = f"file://{tmp_path}/logs/x.log"
    for word in (b"a", b"b"):
        relay, guest = connected(loop, Names("", name, name))
        guest["stdout"].sendall(word)
        for sock in guest.values():
            sock.close()
        assert relay.drain(5)
    assert (tmp_path / "logs/x.log").read_bytes() == b"ab"


def test_a_cri_log_gets_both_streams(loop: Loop, tmp_path: Path) -> None:
    """cri-log:// formats and shares one file."""
    name = f"cri-log://{tmp_path}/x.log"
    relay, guest = connected(loop, Names("", name, name))
    guest["stdout"].sendall(b"o\n")
    guest["stderr"].sendall(b"e\n")
    for sock in guest.values():
        sock.close()
    assert relay.drain(5)
    lines = sorted(line.split(" ", 1)[1] for line in (tmp_path / "x.log").read_text().splitlines())
    assert lines == ["stderr F e", "stdout F o"]


def test_a_process_without_streams_has_its_output_discarded(loop: Loop) -> None:
    """Empty names mean null: the guest may write as much as it likes."""
    relay, guest = connected(loop, Names())
    assert list(guest) == ["stdout"]
    guest["stdout"].settimeout(5)
    guest["stdout"].sendall(b"z" * (1 << 21))
    guest["stdout"].close()
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
