"""The parts of a machine end together: which end is the reason, and that the rest is ended, whenever it comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from shim import process
from shim.process import Child
from shim.sandbox.fate import Fate


def sleeper(seconds: str = "600") -> Child:
    """A process that ends by itself, with status 0."""
    return process.spawn(["sleep", seconds])


class Parts:
    """A VMM and a daemon that are real processes, and the fate that they share."""

    def __init__(self) -> None:
        self.fate = Fate()
        self.vmm, self.daemon = sleeper(), sleeper()
        self.reasons: list[str] = []
        self.told = threading.Event()

    def watch(self) -> None:
        """What builder.py does."""
        self.fate.watch_daemon("daemon", self.daemon.on_exit, self.daemon.poll, self.daemon.kill)
        self.fate.watch_vmm(self.vmm.on_exit, self.vmm.poll, lambda: "the VM has ended")
        self.fate.also(lambda: self.vmm.terminate(0))
        self.fate.tell(self._tell)

    def _tell(self, reason: str) -> None:
        self.reasons.append(reason)
        self.told.set()


@pytest.fixture
def parts() -> Iterator[Parts]:
    """Two that sleep."""
    made = Parts()
    yield made
    for child in (made.vmm, made.daemon):
        child.terminate(0)
        child.close()


def test_a_killed_daemon_is_the_reason_and_ends_the_vmm(parts: Parts) -> None:
    """Nobody waits for a guest whose daemon is gone."""
    parts.watch()
    parts.daemon.signal(9)
    assert parts.told.wait(10)
    assert parts.reasons == ["daemon was killed by SIGKILL"] and parts.vmm.wait(10) == -9
    assert parts.fate.killed


def test_a_daemon_that_follows_the_vmm_is_not_the_reason(parts: Parts) -> None:
    """It ends by itself as soon as the VMM's connections are closed, which is before the VMM's end is told."""
    parts.daemon.terminate(0)
    parts.daemon = sleeper("0.1")
    parts.watch()
    time.sleep(0.3)
    parts.vmm.signal(9)
    assert parts.told.wait(10)
    assert parts.reasons == ["the VM has ended"]


def test_a_daemon_that_ends_alone_is_the_reason(parts: Parts) -> None:
    """If the VMM does not follow."""
    parts.daemon.terminate(0)
    parts.daemon = sleeper("0")
    parts.watch()
    assert parts.told.wait(10)
    assert parts.reasons == ["daemon exited with status 0"] and parts.vmm.wait(10) == -9
    assert not parts.fate.killed, "the VMM was killed by us"


def test_an_outer_fate_ends_the_inner_one(parts: Parts) -> None:
    """A boot that is given up, and its VM; another attempt's end is not the outer one's."""
    outer = Fate()
    parts.fate = Fate(outer)
    parts.watch()
    Fate(outer).end("a first attempt")
    assert not parts.told.wait(0.2)
    outer.end("given up")
    assert parts.told.wait(10) and parts.reasons == ["given up"] and parts.vmm.wait(10) == -9


def test_what_comes_late_is_ended_too(parts: Parts) -> None:
    """A part that is made, and somebody who wants to be told, after the end."""
    parts.daemon.terminate(0)
    parts.fate.watch_daemon("daemon", parts.daemon.on_exit, parts.daemon.poll, parts.daemon.kill)
    assert parts.fate.wait(10)
    parts.fate.also(lambda: parts.vmm.terminate(0))
    assert parts.vmm.wait(10) == -9
    parts.fate.tell(parts._tell)
    assert parts.told.wait(10) and parts.reasons == ["daemon was killed by SIGKILL"]


def test_an_end_that_is_meant_is_no_news(parts: Parts) -> None:
    """After `release` nobody is told."""
    parts.watch()
    parts.fate.release()
    parts.vmm.terminate(0)
    parts.daemon.terminate(0)
    assert not parts.told.wait(0.3) and parts.fate.reason == ""


def test_dismissed_daemons_end_at_once(parts: Parts) -> None:
    """And nobody is told; the VMM is ended by who has dismissed them."""
    parts.watch()
    parts.fate.dismiss()
    assert parts.daemon.wait(10) == -9
    assert not parts.told.wait(0.1) and parts.vmm.poll() is None
