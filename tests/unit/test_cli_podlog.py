"""What a pod's log and a guest's console say of an end, as their user reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim.byhand import registry
from shim.byhand.registry import Container
from shim.cli.podlog import PodLog
from shim.errors import BootError, last_lines
from shim.log import Log

PANIC = """\
[    0.52] Kernel panic - not syncing: Requested init /none failed (error -2).
[    0.53] CPU: 0 PID: 1 Comm: swapper/0 Not tainted 6.1.192-hako #1
[    0.53] Call Trace:
[    0.53]  <TASK>
[    0.53]  ? panic+0x107/0x27d
[    0.53]  </TASK>
[    0.54] Kernel Offset: disabled
"""


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Container:
    """A container with a directory of its own."""
    monkeypatch.setenv("HAKO_STATE_DIR", str(tmp_path))
    return registry.new("box")


def _written(container: Container, *lines: tuple[str, str]) -> PodLog:
    fd = os.open(container.file("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = Log("debug", fd)
    for level, text in lines:
        log(level, text)
    os.close(fd)
    return PodLog(container)


def test_the_last_error_comes_back_as_it_was_said(container: Container) -> None:
    """Quotes, backslashes and lines survive the log; other levels are no errors."""
    said = 'first "a" and b\\c'
    log = _written(container, ("error", "old"), ("error", said), ("warn", "later"))
    assert (log.last_error(), log.last_words()) == (said, "")
    log.close()
    assert _written(container, ("error", "two\nlines")).last_error() == "two; lines"


def test_a_log_outlives_its_container(container: Container) -> None:
    """--rm takes the file away before its user has read why."""
    log = _written(container, ("error", "the VM has ended"))
    os.unlink(container.file("log"))
    assert log.last_error() == "the VM has ended"


def test_last_words_are_those_of_a_crash(container: Container) -> None:
    """What is no line of the log: an exception that ended the process."""
    _written(container, ("info", "up")).close()
    with open(container.file("log"), "a") as stream:
        stream.write("Traceback (most recent call last):\nMemoryError\n")
    assert PodLog(container).last_words() == "MemoryError"


def test_without_a_log_nothing_is_known(container: Container) -> None:
    """No file, no reason, no error."""
    log = PodLog(container)
    assert (log.last_error(), log.last_words()) == ("", "")
    log.close()


def test_a_panic_is_quoted_without_its_stack() -> None:
    """The line that says why, not the frames below it."""
    assert last_lines(PANIC) == "[    0.52] Kernel panic - not syncing: Requested init /none failed (error -2)."
    said = str(BootError("boot", "the guest ended", console_tail=PANIC, vmm_stderr="qemu: x\n\n"))
    assert said.startswith("boot: the guest ended; guest console: [    0.52] Kernel panic") and said.endswith("VMM: qemu: x")
    assert last_lines("\n".join(map(str, range(100))), 3) == "97 | 98 | 99"
    assert last_lines(PANIC + "".join(f"\nR{number}: 0" for number in range(20)), 2).startswith("[    0.52] Kernel panic - not")
