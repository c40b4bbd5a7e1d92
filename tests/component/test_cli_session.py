"""An attached session: a real program between its user's descriptors and real fifos (session_peer.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.framework.importgraph import REPOSITORY
from tests.framework.screen import Screen

PEER = [sys.executable, "-m", "tests.framework.session_peer"]


def _start(directory: Path, *words: str, stdin: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    argv = [*PEER, str(directory), *words]
    return subprocess.Popen(argv, cwd=REPOSITORY, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _calls(directory: Path) -> list[str]:
    return (directory / "calls").read_text().splitlines()


def _wait_for(condition: str, found: object) -> None:
    """Wait until `found()` is true."""
    assert callable(found)
    deadline = time.monotonic() + 10
    while not found():
        assert time.monotonic() < deadline, f"never: {condition}"
        time.sleep(0.01)


def test_output_and_status(tmp_path: Path) -> None:
    """Both outputs arrive whole and apart, and the exit status is the command's."""
    peer = _start(tmp_path, "sh", "-c", "head -c 300000 /dev/zero; echo err >&2; exit 7")
    out, err = peer.communicate(timeout=20)
    assert (len(out), err, peer.returncode) == (300000, b"err\n", 7)


def test_death_by_a_signal(tmp_path: Path) -> None:
    """A command that a signal killed gives 128 + its number."""
    peer = _start(tmp_path, "sh", "-c", "kill -9 $$")
    peer.communicate(timeout=20)
    assert peer.returncode == 137


def test_piped_input_to_its_end(tmp_path: Path) -> None:
    """With -i, more input than any pipe holds passes, and its end ends the container's input."""
    peer = _start(tmp_path, "-i", "sh", "-c", "cat; echo end")
    out, _ = peer.communicate(b"x" * 1_000_000, timeout=30)
    assert out == b"x" * 1_000_000 + b"end\n"
    assert _calls(tmp_path) == ["CloseIO"]


def test_input_from_a_file(tmp_path: Path) -> None:
    """A regular file, which epoll would refuse, is input like any other."""
    (tmp_path / "in").write_bytes(b"from a file\n")
    with (tmp_path / "in").open("rb") as file:
        peer = _start(tmp_path, "-i", "cat", stdin=file.fileno())
        assert peer.communicate(timeout=20)[0] == b"from a file\n"


def test_input_stays_ours_without_i(tmp_path: Path) -> None:
    """Without -i nothing of standard input is read, and the command sees its end at once."""
    read, write = os.pipe()
    os.write(write, b"mine")
    peer = _start(tmp_path, "cat", stdin=read)
    assert peer.communicate(timeout=20)[0] == b""
    assert os.read(read, 10) == b"mine"
    os.close(read)
    os.close(write)


def test_input_that_the_command_does_not_take(tmp_path: Path) -> None:
    """A command that ends without reading does not keep the session, however much input waits."""
    read, write = os.pipe()
    peer = _start(tmp_path, "-i", "sh", "-c", "exec <&-; echo done", stdin=read)
    os.close(read)
    os.set_blocking(write, False)
    os.write(write, b"x" * 60_000)
    out, _ = peer.communicate(timeout=20)
    assert (out, peer.returncode) == (b"done\n", 0)
    os.close(write)


def test_signals_are_forwarded(tmp_path: Path) -> None:
    """A signal to the client reaches the command, which decides what it means."""
    peer = _start(
        tmp_path, "sh", "-c", "trap 'echo usr1; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
    )
    assert peer.stdout is not None
    assert peer.stdout.readline() == b"ready\n"
    peer.send_signal(signal.SIGUSR1)
    assert peer.communicate(timeout=20)[0] == b"usr1\n"
    assert (peer.returncode, _calls(tmp_path)) == (3, ["Kill SIGUSR1"])


def test_the_third_interrupt_kills(tmp_path: Path) -> None:
    """A command that ignores SIGINT and SIGTERM, as PID 1 of a container does, ends with the third one."""
    peer = _start(tmp_path, "sh", "-c", "trap '' INT TERM; echo ready; while :; do sleep 0.05; done")
    assert peer.stdout is not None
    assert peer.stdout.readline() == b"ready\n"
    for count, number in enumerate((signal.SIGINT, signal.SIGTERM, signal.SIGINT), 1):
        peer.send_signal(number)
        _wait_for(f"{count} signals forwarded", lambda count=count: len(_calls(tmp_path)) == count)
    peer.communicate(timeout=20)
    assert peer.returncode == 137
    assert _calls(tmp_path)[-1] == "Kill SIGKILL"


def test_a_reader_that_goes_away_ends_the_session(tmp_path: Path) -> None:
    """`hako run ... | head -1` ends although the command would go on for ever."""
    pid = tmp_path / "pid"
    peer = _start(tmp_path, "sh", "-c", f"echo $$ > {pid}; trap '' PIPE; while :; do echo y; done 2>/dev/null")
    try:
        assert peer.stdout is not None
        peer.stdout.read(2)
        peer.stdout.close()
        assert peer.wait(timeout=20) == 91
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def _screen(directory: Path, *words: str) -> Screen:
    return Screen([*PEER, str(directory), "-i", "-t", *words], REPOSITORY)


def test_terminal_session(tmp_path: Path) -> None:
    """On a terminal, keys reach the command as typed, its output comes back, and the terminal is restored."""
    screen = _screen(tmp_path, "sh", "-c", "echo ready; read line; echo got $line; exit 4")
    screen.wait_for(b"ready")
    screen.type(b"abc\r")
    screen.wait_for(b"got abc")
    assert screen.ended() == 4


def test_control_c_belongs_to_the_container(tmp_path: Path) -> None:
    """Ctrl-C interrupts the command through its own terminal; the client gets no signal."""
    screen = _screen(tmp_path, "sh", "-c", "trap 'echo int; exit 5' INT; echo ready; while :; do sleep 0.05; done")
    screen.wait_for(b"ready")
    screen.type(b"\x03")
    screen.wait_for(b"int")
    assert screen.ended() == 5
    assert not [call for call in _calls(tmp_path) if call.startswith("Kill")]


def test_window_size_follows(tmp_path: Path) -> None:
    """The size is told before the start and after each change of the window."""
    screen = _screen(tmp_path, "sh", "-c", "echo ready; read line")
    screen.wait_for(b"ready")
    screen.resize(132, 43)
    _wait_for("the new size", lambda: "ResizePty 132x43" in _calls(tmp_path))
    assert _calls(tmp_path)[0] == "ResizePty 80x24"
    screen.type(b"\r")
    assert screen.ended() == 0


def test_detaching(tmp_path: Path) -> None:
    """ctrl-p ctrl-q leaves; what was typed before them still goes to the container."""
    screen = _screen(tmp_path, "sh", "-c", "echo ready; read line; echo got $line; sleep 5")
    screen.wait_for(b"ready")
    screen.type(b"x\r")
    screen.wait_for(b"got x")
    screen.type(b"\x10\x11")
    assert screen.ended() == 90


def test_a_closed_terminal(tmp_path: Path) -> None:
    """When the window is closed, the command is told by SIGHUP and the client ends with it."""
    screen = _screen(tmp_path, "sh", "-c", "trap 'exit 6' HUP; echo ready; while :; do sleep 0.05; done")
    screen.wait_for(b"ready")
    screen.close_window()
    assert screen.program.wait(timeout=20) in (6, 91)
    assert "Kill SIGHUP" in _calls(tmp_path)


def test_a_closed_terminal_of_a_command_that_goes_on(tmp_path: Path) -> None:
    """A command that does not care for SIGHUP, as PID 1 of a container does not, is left alone; the client ends."""
    pid = tmp_path / "pid"
    screen = _screen(tmp_path, "sh", "-c", f"trap '' HUP; echo $$ > {pid}; echo ready; exec sleep 60")
    screen.wait_for(b"ready")
    try:
        screen.close_window()
        assert screen.program.wait(timeout=20) == 91
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_a_killed_client_leaves_the_command(tmp_path: Path, number: signal.Signals) -> None:
    """SIGKILL to the client does nothing to the terminal's other users: nothing is forwarded."""
    peer = _start(tmp_path, "sh", "-c", "echo ready; sleep 5")
    assert peer.stdout is not None
    peer.stdout.readline()
    peer.send_signal(number)
    peer.wait(timeout=20)
    assert _calls(tmp_path) == []
