"""Streams of `hako run`: into the log always, and to whoever is attached as long as he is there."""

from __future__ import annotations

import os
import select
import threading
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket, socketpair

import pytest

from agent.linux.loop import Loop
from shim.cli import crilog
from shim.cli.fifos import Fifos
from shim.stdio.fifo import Names
from shim.stdio.relay import Relay, Streams
from tests.framework.fakeguest import end_output, send_output

BIG = 300_000  # more than a fifo holds


def _connected(loop: Loop, fifos: Fifos, log: Path) -> tuple[Relay, dict[str, socket]]:
    streams = Streams(Names(*fifos.logged(str(log))))
    host, guest = {}, {}
    for name in streams.channels():
        host[name], guest[name] = socketpair(AF_UNIX, SOCK_STREAM)
        guest[name].settimeout(10)
    relay = Relay(loop, streams, host)
    relay.start()
    relay.start_input()
    return relay, guest


def _read_all(fd: int) -> bytes:
    data = b""
    while select.select([fd], [], [], 10)[0]:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            return data
        data += chunk
    raise AssertionError(f"no end after {len(data)} bytes")


def _logged(log: Path) -> dict[str, bytes]:
    found = {"stdout": b"", "stderr": b""}
    for entry in crilog.read(str(log)):
        found[entry.stream] += entry.content + (b"\n" if entry.ends_line else b"")
    return found


def test_attached_output_is_logged_too(loop: Loop, tmp_path: Path) -> None:
    """Both outputs reach the one who is attached, apart and whole, and stand in one log."""
    fifos, log = Fifos(str(tmp_path), "", stdin=False, terminal=False), tmp_path / "log"
    relay, guest = _connected(loop, fifos, log)
    send_output(guest["stdout"], b"out\n")
    send_output(guest["stderr"], b"err")
    for sock in guest.values():
        end_output(sock)
    assert (_read_all(fifos.fd("stdout")), _read_all(fifos.fd("stderr"))) == (b"out\n", b"err")
    assert relay.drain(5)
    assert _logged(log) == {"stdout": b"out\n", "stderr": b"err"}
    fifos.close()


@pytest.mark.parametrize("stuck", [False, True])
def test_output_goes_on_when_nobody_is_attached_any_more(loop: Loop, tmp_path: Path, stuck: bool) -> None:
    """The attached client is killed, idle or with a full fifo: the container never waits for it."""
    fifos, log = Fifos(str(tmp_path), "", stdin=False, terminal=True), tmp_path / "log"
    relay, guest = _connected(loop, fifos, log)
    send_output(guest["stdout"], b"first\n")
    select.select([fifos.fd("stdout")], [], [], 10)
    lines = b"x" * 99 + b"\n"
    if stuck:
        threading.Timer(0.2, fifos.close_end, ["stdout"]).start()
    else:
        fifos.close_end("stdout")
    send_output(guest["stdout"], lines * (BIG // 100))
    end_output(guest["stdout"])
    assert relay.drain(10)
    assert _logged(log)["stdout"] == b"first\n" + lines * (BIG // 100)
    fifos.close()


def test_a_client_that_left_before_the_start(loop: Loop, tmp_path: Path) -> None:
    """With nobody at the fifo from the beginning there is only the log."""
    fifos, log = Fifos(str(tmp_path), "", stdin=False, terminal=True), tmp_path / "log"
    fifos.close_end("stdout")
    relay, guest = _connected(loop, fifos, log)
    send_output(guest["stdout"], b"out\n")
    end_output(guest["stdout"])
    assert relay.drain(5)
    assert _logged(log)["stdout"] == b"out\n"
    fifos.close()
