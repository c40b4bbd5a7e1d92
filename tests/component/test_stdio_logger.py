"""binary://: a program takes the output, as containerd's logging convention has it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socketpair

import pytest

from agent.linux.loop import Loop
from shim.errors import HakoError
from shim.stdio.binary import Owner
from shim.stdio.fifo import Names
from shim.stdio.relay import Relay, Streams
from tests.framework.fakeguest import end_output, send_output

LOGGER = """#!/usr/bin/python3
import os, sys
fds = sorted(map(int, os.listdir("/proc/self/fd")))[:7]
with open(sys.argv[2], "w") as log:
    print(sys.argv[1], os.environ["CONTAINER_ID"], os.environ["CONTAINER_NAMESPACE"], fds, file=log)
    os.close(5)
    print(open(3).read(), open(4).read(), file=log)
    print("end", file=log)
"""


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A running loop."""
    loop = Loop()
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield loop
    loop.stop()
    thread.join(5)


def program(directory: Path, text: str) -> Path:
    """An executable script."""
    path = directory / "logger"
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_logger_gets_both_streams_and_its_arguments(loop: Loop, tmp_path: Path) -> None:
    """stdout on 3, stderr on 4, ready on 5; key and value as arguments; ids in the environment; then the
    end.
    """
    log = tmp_path / "log"
    os.mkfifo(tmp_path / "done")
    uri = f"binary://{program(tmp_path, LOGGER)}?key={log}"
    streams = Streams(Names("", uri, uri), Owner("c1", "ns1"))
    assert streams.channels() == ["stdout", "stderr"]
    pairs = {name: socketpair(AF_UNIX, SOCK_STREAM) for name in streams.channels()}
    relay = Relay(loop, streams, {name: pair[0] for name, pair in pairs.items()})
    relay.start()
    relay.start_input()
    for name, (_host, guest) in pairs.items():
        send_output(guest, name.encode())
        end_output(guest)
    assert relay.drain(5)
    for _ in range(200):
        if "end" in log.read_text():
            break
        threading.Event().wait(0.02)
    lines = log.read_text().splitlines()
    assert lines[0].startswith("key c1 ns1 [0, 1, 2, 3, 4, 5,")
    assert lines[1:] == ["stdout stderr", "end"]


def test_a_logger_that_fails_is_an_error(tmp_path: Path) -> None:
    """Its words are in it, and nothing stays open."""
    before = len(os.listdir("/proc/self/fd"))
    path = program(tmp_path, "#!/bin/sh\necho cannot log >&2\nexit 3\n")
    with pytest.raises(HakoError, match=r"status 3.*cannot log"):
        Streams(Names("", f"binary://{path}", ""))
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # the watcher and its child's descriptors
