"""Streams of real processes: complete, bounded, ending at the right time; terminals; RPC."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from agent.api import oci_pb2
from agent.errors import Unsupported
from agent.process.process import Process, reap_orphans
from agent.process.stdio import Stdio, StdioPlan
from tests.framework.box import Finished, Guest, Streams, unframe
from tests.framework.inguest import in_guest, need_busybox, need_root

pytestmark = [need_root, need_busybox, pytest.mark.usefixtures("either_way")]
MEGA = 1 << 20


def simple(*args: str, terminal: bool = False) -> oci_pb2.Process:
    """A process message."""
    return oci_pb2.Process(Args=args, Cwd="/", Env=["PATH=/bin"], Terminal=terminal)


class Reader:
    """Collects what a stream gives by RPC."""

    def __init__(self, stdio: Stdio, which: int, size: int = 32768) -> None:
        self.data = b""
        self.ended = False
        self.calls = 0
        self._stdio, self._which, self._size = stdio, which, size
        self._again()

    def _again(self) -> None:
        self.calls += 1
        self._stdio.read(self._which, self._size, self._got)

    def _got(self, data: bytes) -> None:
        assert len(data) <= self._size
        self.data += data
        if data:
            self._again()
        else:
            self.ended = True


# --- raw streams --------------------------------------------------------------------------------------------


def test_50_mb_each_way_are_intact_and_memory_is_constant() -> None:
    """What goes in through stdin comes out of stdout, and the agent's memory does not grow with it."""
    seed = os.urandom(MEGA)
    expected = hashlib.sha1(seed * 50).digest()

    def body(guest: Guest) -> tuple[list[int], float, int]:
        host_in, agent_in = socket.socketpair()
        helpers = [forked(lambda: write(host_in, seed, 50))]
        host_in.close()
        host_out, agent_out = socket.socketpair()
        helpers.append(forked(lambda: check(host_out, expected)))
        host_out.close()
        container = guest.container(guest.spec(["cat"]))
        container.create(StdioPlan(agent_in.detach(), agent_out.detach()))
        container.start()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.monotonic()
        guest.wait(container.init, 60)
        drained: list[bool] = []
        container.init.stdio.on_drained(lambda: drained.append(True))
        guest.until(lambda: bool(drained))
        seconds = time.monotonic() - began
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return [os.waitpid(pid, 0)[1] for pid in helpers], seconds, grown

    statuses, seconds, grown = in_guest(body, 90)
    assert statuses == [0, 0]
    assert seconds < 30
    assert grown < 4096  # KiB


def forked(work: Callable[[], None]) -> int:
    """The pid of a helper process; its status is 0 if `work` raised nothing."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - told by the status
            os._exit(1)
        os._exit(0)
    return pid


def write(sock: socket.socket, piece: bytes, times: int) -> None:
    """The host's end of stdin."""
    for _ in range(times):
        sock.sendall(piece)


def check(sock: socket.socket, expected: bytes) -> None:
    """The host's end of stdout: frames until the empty one, whose content has this digest."""
    digest = hashlib.sha1()
    with sock.makefile("rb") as stream:
        while size := int.from_bytes(stream.read(4), "big"):
            assert size <= 1 << 20
            digest.update(stream.read(size))
    assert digest.digest() == expected


def test_the_process_stops_while_nobody_reads() -> None:
    """The pipe and the socket fill; the writer waits in the kernel, not in the agent's memory."""

    def body(guest: Guest) -> tuple[int, int]:
        container = guest.container(
            guest.spec("yes=0; while true; do echo 0123456789012345678901234567890123456789; done")
        )
        streams = Streams()
        container.create(streams.plan())
        container.start()

        def taken() -> int:
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                guest.loop.run_once(0.05)
            return container.init.stdio._flows[1].moved

        first, second = taken(), taken()
        container.remove()
        return first, second

    first, second = in_guest(body)
    assert first == second
    assert first < MEGA


def test_the_exit_does_not_wait_for_a_grandchild_that_holds_the_pipe() -> None:
    """Exit and end of output are two events (Kata #3913): the status comes at once, the output goes on."""

    def body(guest: Guest) -> tuple[int, str, bool, float]:
        container = guest.started(["sleep", "100"])
        streams = Streams()
        began = time.monotonic()
        process = container.exec(
            "e", simple("sh", "-c", "(sleep 1; echo late) & echo now; exit 3"), streams.plan()
        )
        status = guest.wait(process)
        seconds = time.monotonic() - began
        drained: list[bool] = []
        process.stdio.on_drained(lambda: drained.append(True))
        guest.until(lambda: streams.shows("late") and bool(drained))
        return status, streams.text(1), bool(drained), seconds

    status, out, drained, seconds = in_guest(body)
    assert (status, out, drained) == (3, "now\nlate\n", True)
    assert seconds < 0.9


def test_output_of_a_process_that_is_gone_is_complete() -> None:
    """What it wrote right before its exit comes out."""

    def body(guest: Guest) -> int:
        return len(guest.run("head -c 60000 /dev/zero; exit 0").out)

    assert in_guest(body) == 60000


def test_a_host_that_is_gone_does_not_stop_the_container() -> None:
    """Its output gets EPIPE, as with any closed pipe, and the agent lives."""

    def body(guest: Guest) -> int:
        container = guest.container(guest.spec("trap '' PIPE; echo x; sleep 0.2; echo y; echo z; exit 4"))
        streams = Streams()
        container.create(streams.plan())
        streams.close()
        container.start()
        return guest.wait(container.init)

    assert in_guest(body) == 4


def test_stdin_ends_with_the_stream() -> None:
    """The host's close is the end of the process's input."""
    result = in_guest(lambda guest: guest.run("wc -c", stdin=b"12345"))
    assert result.out == "5\n"


def test_close_stdin_takes_what_is_on_its_way() -> None:
    """CloseStdin without closing the stream: after its data."""

    def body(guest: Guest) -> Finished:
        container = guest.container(guest.spec("wc -c"))
        streams = Streams(b"12345", keep_stdin=True)
        container.create(streams.plan())
        container.start()
        streams.pump()
        container.init.stdio.close_stdin()
        return streams.finish(guest, container.init)

    assert in_guest(body).out == "5\n"


def test_input_that_nobody_reads_does_not_hold_the_exit() -> None:
    """The streams of a process that never reads are closed with it."""

    def body(guest: Guest) -> tuple[int, int]:
        guest.run("true")
        before = guest.open_files()
        container = guest.container(guest.spec("sleep 0.2"))
        streams = Streams(bytes(MEGA))
        container.create(streams.plan())
        container.start()
        streams.finish(guest, container.init)
        container.remove()
        return before, guest.open_files()

    before, after = in_guest(body)
    assert after <= before


def test_remove_delivers_what_is_in_the_pipe() -> None:
    """Output of a container that is removed while it runs arrives, with its end."""

    def body(guest: Guest) -> tuple[str, bool]:
        container = guest.container(guest.spec("echo last words; touch /said; sleep 100"))
        streams = Streams()
        container.create(streams.plan())
        container.start()
        until = time.monotonic() + 10
        while not (guest.rootfs() / "said").exists() and time.monotonic() < until:
            time.sleep(0.01)  # and not the loop, so that nothing is moved yet
        container.remove()
        guest.until(streams.outputs_ended)
        return streams.text(1), streams.clean[1]

    assert in_guest(body) == ("last words\n", True)


def test_remove_does_not_wait_for_a_host_that_does_not_read() -> None:
    """A frame on its way is never cut by the end; the rest of a blocked stream is given up in time."""

    def body(guest: Guest) -> tuple[float, int]:
        container = guest.container(guest.spec("while true; do echo 0123456789; done"))
        streams = Streams()
        container.create(streams.plan())
        container.start()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            guest.loop.run_once(0.05)
        began = time.monotonic()
        container.remove()
        seconds = time.monotonic() - began
        guest.until(streams.outputs_ended)
        assert streams.clean[1]
        return seconds, len(streams.text(1).rstrip("0123456789\n"))

    seconds, strange = in_guest(body)
    assert seconds < 2
    assert strange == 0


# --- terminals ----------------------------------------------------------------------------------------------


def on_terminal(script: str, *typed: bytes, **changes: Any) -> Finished:
    """A container with a terminal, to which `typed` is sent once it says "ready"."""

    def body(guest: Guest) -> Finished:
        changes.setdefault("process", {})["terminal"] = True
        container = guest.container(guest.spec(script, **changes))
        streams = Streams(terminal=True, keep_stdin=True)
        container.create(streams.plan())
        container.start()
        for text in typed:
            guest.until(lambda: streams.shows("ready"))
            streams.send(text)
        return streams.finish(guest, container.init)

    return in_guest(body)


def test_terminal_is_the_containers_own() -> None:
    """tty(1) finds it in /dev/pts, /dev/console is it, it controls the session, and it has the size asked
    for.
    """
    script = (
        "tty; test -t 0 -a -t 1 -a -t 2 && echo all; stty size; echo x > /dev/tty; "
        "ls -l /dev/console | cut -c1"
    )
    out = on_terminal(script, process={"consoleSize": {"height": 40, "width": 120}}).out
    assert out.split() == ["/dev/pts/0", "all", "40", "120", "x", "c"]
    assert "\r\n" in out


def test_a_stderr_that_a_terminal_does_not_have_ends_at_once() -> None:
    """A caller who gives one nevertheless does not wait for it."""

    def body(guest: Guest) -> bytes:
        ours, theirs = socket.socketpair()
        container = guest.container(guest.spec("sleep 100", process={"terminal": True}))
        container.create(StdioPlan(stderr=theirs.detach(), terminal=True))
        return ours.recv(100)

    assert in_guest(body) == bytes(4)


def test_typing_into_a_terminal() -> None:
    """Input, echo, and the end-of-input character."""
    out = on_terminal("echo ready; cat; echo over", b"hello\n", b"\x04").out
    assert out.replace("\r\n", "\n").startswith("ready\n")
    assert "hello\r\nhello\r\n" in out
    assert out.endswith("over\r\n")


def test_interrupt_character_reaches_the_foreground() -> None:
    """^C on the controlling terminal."""
    assert on_terminal("trap 'echo caught; exit 5' INT; echo ready; sleep 100 & wait", b"\x03").status == 5


def test_resize_before_and_after_the_start() -> None:
    """Before: the program starts with the size. After: it gets SIGWINCH."""

    def body(guest: Guest) -> Finished:
        script = "stty size; trap 'stty size; exit 0' WINCH; echo ready; while true; do sleep 0.05; done"
        container = guest.container(guest.spec(script, process={"terminal": True}))
        streams = Streams(terminal=True, keep_stdin=True)
        container.create(streams.plan())
        container.init.stdio.resize(11, 22)
        container.start()
        guest.until(lambda: streams.shows("ready"))
        container.init.stdio.resize(33, 44)
        return streams.finish(guest, container.init)

    assert in_guest(body).out.split() == ["11", "22", "ready", "33", "44"]


def test_resize_without_a_terminal_is_refused() -> None:
    """There is nothing to resize."""

    def body(guest: Guest) -> str:
        container = guest.started("sleep 10")
        try:
            container.init.stdio.resize(1, 2)
        except Unsupported as error:
            return str(error)
        return "no failure"

    assert in_guest(body) == "the process has no terminal"


def test_terminal_belongs_to_the_user() -> None:
    """A user who is not root may open it again."""
    out = on_terminal(
        "echo again > /dev/tty; echo once more > /dev/stdout", process={"user": {"uid": 1000, "gid": 1000}}
    ).out
    assert out.splitlines() == ["again", "once more"]


def test_terminal_ends_soon_after_its_process() -> None:
    """Though a background process keeps it open: after half a second of quiet."""

    def body(guest: Guest) -> tuple[int, str, float]:
        container = guest.started(["sleep", "100"])
        streams = Streams(terminal=True, keep_stdin=True)
        script = "trap '' HUP; (trap '' HUP; sleep 60) & echo out"
        process = container.exec("e", simple("sh", "-c", script, terminal=True), streams.plan())
        began = time.monotonic()
        result = streams.finish(guest, process)
        return result.status, result.out, time.monotonic() - began

    status, out, seconds = in_guest(body)
    assert (status, out) == (0, "out\r\n")
    assert seconds < 5


def test_large_output_of_a_terminal_is_complete() -> None:
    """The drain after the exit takes all that the terminal still holds."""
    out = on_terminal("stty -opost; i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done").out
    assert out.splitlines() == [f"line {number}" for number in range(2000)]


# --- RPC ----------------------------------------------------------------------------------------------------


def test_rpc_reads_are_bounded_and_end_empty() -> None:
    """ReadStdout and ReadStderr: at most what was asked for; nothing at the end, also later on."""

    def body(guest: Guest) -> tuple[bytes, bytes, int, bytes]:
        container = guest.container(guest.spec("head -c 100000 /dev/zero; echo err >&2"))
        container.create(StdioPlan(rpc=True))
        stdio = container.init.stdio
        out, err = Reader(stdio, 1, 4096), Reader(stdio, 2)
        container.start()
        guest.until(lambda: out.ended and err.ended)
        late: list[bytes] = []
        stdio.read(1, 10, late.append)
        return out.data, err.data, out.calls, late[0]

    out, err, calls, late = in_guest(body)
    assert (len(out), err, late) == (100000, b"err\n", b"")
    assert calls > 24


def test_rpc_writes_are_whole_and_wait_for_the_reader() -> None:
    """WriteStdin answers when everything is in the pipe; CloseStdin comes after it."""

    def body(guest: Guest) -> tuple[list[tuple[int, str]], bytes, int]:
        container = guest.container(guest.spec("sleep 0.3; wc -c"))
        container.create(StdioPlan(rpc=True))
        stdio = container.init.stdio
        answers: list[tuple[int, str]] = []
        stdio.write_stdin(bytes(300000), lambda count, error: answers.append((count, str(error or ""))))
        stdio.write_stdin(b"xy", lambda count, error: answers.append((count, str(error or ""))))
        at_first = len(answers)
        stdio.close_stdin()
        container.start()
        out = Reader(stdio, 1)
        guest.until(lambda: out.ended)
        return answers, out.data, at_first

    assert in_guest(body) == ([(300000, ""), (2, "")], b"300002\n", 0)


def test_rpc_write_to_a_closed_stdin_fails() -> None:
    """As EPIPE would."""

    def body(guest: Guest) -> list[tuple[int, str]]:
        container = guest.container(guest.spec("exec <&-; sleep 0.1; exit 0"))
        container.create(StdioPlan(rpc=True))
        container.start()
        answers: list[tuple[int, str]] = []
        stdio = container.init.stdio
        guest.wait(container.init)
        stdio.write_stdin(b"x", lambda count, error: answers.append((count, type(error).__name__)))
        return answers

    assert in_guest(body) == [(0, "BrokenPipeError")]


def test_rpc_read_can_be_cancelled_without_losing_data() -> None:
    """The caller went away; the next one gets what comes."""

    def body(guest: Guest) -> tuple[list[bytes], bytes]:
        container = guest.container(guest.spec("sleep 0.2; echo data"))
        container.create(StdioPlan(rpc=True))
        container.start()
        stdio = container.init.stdio
        gone: list[bytes] = []
        cancel = stdio.read(1, 100, gone.append)
        cancel()
        cancel()
        guest.wait(container.init)
        out = Reader(stdio, 1)
        guest.until(lambda: out.ended)
        return gone, out.data

    assert in_guest(body) == ([], b"data\n")


def test_rpc_terminal_after_exit() -> None:
    """Unread output of a terminal is not lost, however late the reader comes; then the end within 0.5 s."""

    def body(guest: Guest) -> tuple[bytes, float]:
        container = guest.started(["sleep", "100"])
        script = "(trap '' HUP; sleep 60) & echo out"
        process = container.exec(
            "e", simple("sh", "-c", script, terminal=True), StdioPlan(terminal=True, rpc=True)
        )
        guest.wait(process)
        until = time.monotonic() + 1
        while time.monotonic() < until:
            guest.loop.run_once(0.1)
        began = time.monotonic()
        out = Reader(process.stdio, 1)
        guest.until(lambda: out.ended)
        return out.data, time.monotonic() - began

    data, seconds = in_guest(body)
    assert data == b"out\r\n"
    assert seconds < 2


# --- exits --------------------------------------------------------------------------------------------------


def test_the_sweep_of_orphans_takes_nobodys_status() -> None:
    """PID 1 reaps what was re-parented to it; a child that somebody awaits keeps its status."""

    def body(guest: Guest) -> tuple[int | None, list[str]]:
        container = guest.started("exit 21")
        orphan = os.fork()
        if orphan == 0:
            if os.fork() == 0:
                os._exit(1)  # re-parented to PID 1
            os._exit(0)
        time.sleep(0.3)
        reap_orphans()
        return container.init.exit_status, [name for name in os.listdir("/proc") if name.isdigit()]

    assert in_guest(body) == (21, ["1"])


def test_exit_callbacks() -> None:
    """In the order of their registration, once each; one that comes late is called soon."""

    def body(guest: Guest) -> list[tuple[str, int | None]]:
        container = guest.started("exit 2")
        calls: list[tuple[str, int | None]] = []

        def note(name: str) -> Any:
            return lambda process: calls.append((name, process.exit_status))

        container.init.on_exit(note("first"))
        container.init.on_exit(note("second"))
        guest.wait(container.init)
        container.init.on_exit(note("late"))
        assert len(calls) == 2
        guest.until(lambda: len(calls) == 3)
        return calls

    assert in_guest(body) == [("first", 2), ("second", 2), ("late", 2)]


def test_a_process_that_another_has_reaped_is_over() -> None:
    """Its status is unknown, and nobody waits for ever."""

    def body(guest: Guest) -> int:
        container = guest.started("exit 2")
        process: Process = container.init
        os.waitpid(process.pid, 0)
        return guest.wait(process)

    assert in_guest(body) == 255


def test_frames_of_the_helper_are_understood() -> None:
    """The tests' own reader of frames."""
    assert unframe(b"\0\0\0\2ab\0\0\0\1c\0\0\0\0") == b"abc"
