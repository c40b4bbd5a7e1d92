"""The QMP client against a peer in the test: answers, refusals, silence, garbage."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shim.errors import Timeout, Unavailable
from shim.hypervisor.qemu.qmp import MESSAGE_BYTES, Qmp, QmpError

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


class Peer:
    """QEMU's end. `script` maps a command to what is sent back; a missing one is not answered."""

    def __init__(self) -> None:
        near, self.sock = socket.socketpair()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.seen: list[dict[str, Any]] = []
        self.fds: list[int] = []
        self.script: dict[str, bytes] = {"qmp_capabilities": b'{"return": {}, "id": %d}\r\n'}
        self.qmp = Qmp(near, lambda name, data: self.events.append((name, data)))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        buffer = b""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, 65536, 4)
            except OSError:
                return
            if not data:
                return
            self.fds += fds
            buffer += data
            while b"\r\n" in buffer:
                line, buffer = buffer.split(b"\r\n", 1)
                self._answer(json.loads(line))

    def _answer(self, request: dict[str, Any]) -> None:
        self.seen.append(request)
        answer = self.script.get(request["execute"])
        if answer is not None:
            self.sock.sendall(answer.replace(b"%d", str(request["id"]).encode()))


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A session whose peer has sent its greeting."""
    made = Peer()
    made.sock.sendall(GREETING)
    yield made
    made.qmp.close()
    made.sock.close()


def test_command_after_handshake(peer: Peer) -> None:
    """Capabilities are negotiated first, then a command gets its answer."""
    peer.script["query-status"] = b'{"return": {"status": "running"}, "id": %d}\r\n'
    assert peer.qmp.execute("query-status") == {"status": "running"}
    assert [request["execute"] for request in peer.seen] == ["qmp_capabilities", "query-status"]


def test_refusal_has_qemus_words(peer: Peer) -> None:
    """An error of QEMU is raised with its class and text."""
    peer.script["device_del"] = b'{"error": {"class": "DeviceNotFound", "desc": "no x"}, "id": %d}\r\n'
    with pytest.raises(QmpError, match="QMP: device_del: no x") as caught:
        peer.qmp.execute("device_del", id="x")
    assert caught.value.error_class == "DeviceNotFound"


def test_events_between_answers(peer: Peer) -> None:
    """Events reach the callback whatever else is on the wire."""
    event = b'{"event": "DEVICE_DELETED", "data": {"device": "net1"}, "timestamp": {}}\r\n'
    peer.script["x"] = event + b'{"return": 1, "id": %d}\r\n' + event
    assert peer.qmp.execute("x") == 1
    end = time.monotonic() + 5
    while len(peer.events) < 2 and time.monotonic() < end:
        time.sleep(0.001)
    assert peer.events == [("DEVICE_DELETED", {"device": "net1"})] * 2


def test_silence_is_a_timeout_and_a_late_answer_is_dropped(peer: Peer) -> None:
    """A command that is not answered raises at its deadline; its late answer is not taken for the next
    one's.
    """
    start = time.monotonic()
    with pytest.raises(Timeout, match="QMP: stop: QEMU does not answer"):
        peer.qmp.execute("stop", timeout=0.1)
    assert time.monotonic() - start < 2
    peer.script["cont"] = b'{"return": "late", "id": 1}\r\n{"return": "mine", "id": %d}\r\n'
    assert peer.qmp.execute("cont") == "mine"


def test_no_greeting_is_a_timeout() -> None:
    """A QEMU that hangs before its monitor is up does not hang us."""
    peer = Peer()
    with pytest.raises(Timeout):
        peer.qmp.execute("stop", timeout=0.1)
    peer.qmp.close()
    peer.sock.close()


def test_end_of_qemu_wakes_who_waits(peer: Peer) -> None:
    """A command in flight fails at once when the connection ends, and so does every later one."""
    threading.Timer(0.05, lambda: peer.sock.shutdown(socket.SHUT_RDWR)).start()
    with pytest.raises(Unavailable, match="QEMU has ended"):
        peer.qmp.execute("stop", timeout=10)
    with pytest.raises(Unavailable):
        peer.qmp.execute("cont", timeout=10)


def test_close_wakes_who_waits(peer: Peer) -> None:
    """Closing the session from another thread ends a command that waits."""
    threading.Timer(0.05, peer.qmp.close).start()
    with pytest.raises(Unavailable, match="closed"):
        peer.qmp.execute("stop", timeout=10)


@pytest.mark.parametrize("garbage", [b"not json\r\n", b"[1,2]\r\n", b'"x"\r\n', b"\xff\xfe\r\n", b"{}\r\n"])
def test_garbage_is_skipped(peer: Peer, garbage: bytes) -> None:
    """A line that is no message does not end the session."""
    peer.script["x"] = garbage + b'{"return": 1, "id": %d}\r\n'
    assert peer.qmp.execute("x") == 1


def test_endless_line_is_bounded(peer: Peer) -> None:
    """A line without an end costs a bounded amount of memory and is dropped as a whole."""
    huge = b"x" * (MESSAGE_BYTES + 100000)
    peer.script["x"] = huge + b'\r\n{"return": 1, "id": %d}\r\n'
    assert peer.qmp.execute("x") == 1
    assert len(peer.qmp._buffer) < 1000


def test_descriptors_go_along(peer: Peer) -> None:
    """getfd's descriptor arrives at the other end."""
    read, write = os.pipe()
    peer.script["getfd"] = b'{"return": {}, "id": %d}\r\n'
    peer.qmp.execute("getfd", fdname="tap", fds=[write])
    os.write(peer.fds[0], b"x")
    assert os.read(read, 1) == b"x"
    for fd in (read, write, *peer.fds):
        os.close(fd)
