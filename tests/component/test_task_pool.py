"""The pool of the forkserver, with processes that have no VM (tests/framework/fakepool.py): who gets one, when one is made."""

from __future__ import annotations

import os
import select
import signal
import sys
from _socket import AF_UNIX, SOCK_STREAM, socket, socketpair
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.task import forkclient, pool
from tests.framework import fakepool
from tests.framework.forkroom import SHIM, Room, opened, parent, until
from tests.framework.importgraph import REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test")
PROGRAM = [sys.executable, str(REPOSITORY / "tests/framework/fakepool.py")]


class PoolRoom(Room):
    """A forkserver with a pool of two."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, PROGRAM, "[factory]\npool = 2\n")
        self.until_ready(2)

    def state(self) -> dict[str, Any]:
        """The pool's."""
        told = forkclient.order("status")
        assert told is not None
        return told

    def ready(self) -> list[int]:
        """Pids of those that wait."""
        found: list[int] = self.state()["ready"]
        return found

    def until_ready(self, number: int) -> None:
        until(f"{number} ready", lambda: (state := self.state())["making"] == [] and len(state["ready"]) == number)

    def started(self, name: str) -> int:
        """Start a pod; its process's pid. It counts as starting as long as its first container does not run."""
        self.start(name)
        return self.pod(name)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[PoolRoom]:
    yield from opened(PoolRoom, monkeypatch)


def is_there(pid: int) -> bool:
    """Whether a process is, zombies too."""
    return os.path.exists(f"/proc/{pid}")


def test_a_start_gets_a_process_that_waits(room: PoolRoom) -> None:
    """It becomes the pod's process, with the environment and name of `start`'s child; another is made when that has started."""
    before = room.ready()
    pid = room.started("box")
    assert pid in before
    assert (parent(pid), os.getsid(pid)) == (room.pid, pid)
    assert room.command(pid)[:5] == [SHIM, "-namespace", "n", "-id", "box"]
    assert b"MARK=box" not in Path(f"/proc/{pid}/environ").read_bytes(), "what it was executed with stays"
    sock = socket(AF_UNIX, SOCK_STREAM)
    sock.connect(room.address_of("box"))
    sock.close()
    assert len(room.state()["ready"]) == 1, "nothing is made while a pod starts"
    os.kill(pid, signal.SIGTERM)
    room.until_ready(2)
    assert (room.state()["hits"], room.state()["misses"]) == (1, 0)
    assert pid not in room.ready()
    until("its VM is taken away, once", lambda: (room.directory / f"closed-{pid}").exists())


def test_more_starts_than_there_are_vms(room: PoolRoom) -> None:
    """The third is forked as ever."""
    before = room.ready()
    pids = [room.started(name) for name in ("one", "two", "three")]
    assert set(pids[:2]) == set(before)
    assert pids[2] not in before
    assert parent(pids[2]) == room.pid
    assert (room.state()["hits"], room.state()["misses"]) == (2, 1)


def test_a_start_that_takes_for_ever_does_not_keep_it_empty(room: PoolRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some seconds the pool is filled all the same."""
    room.started("slow")
    room.until_ready(2)
    assert is_there(room.pod("slow"))


def test_another_configuration_is_another_matter(room: PoolRoom) -> None:
    """A start with another file, or another cache, is forked, and the pool stays as it is."""
    before = room.ready()
    other = room.directory / "other.toml"
    other.write_text("")
    for number, (name, value) in enumerate({"HAKO_CONFIG": str(other), "HAKO_CACHE_DIR": "/nowhere"}.items()):
        own = room.environment
        room.environment = own | {name: value}
        assert room.started(f"other{number}") not in before
        room.environment = own
    assert room.ready() == before
    assert room.state()["misses"] == 0


def test_a_changed_configuration(room: PoolRoom) -> None:
    """What was made for the old one goes, without anybody's start; 0 is the end, a number a new beginning."""
    before = room.ready()
    room.configuration.write_text("[factory]\npool = 1\n[agent]\nlog_level = 'debug'\n")
    until("the old ones' end", lambda: not any(map(is_there, before)))
    room.until_ready(1)
    assert all((room.directory / f"closed-{pid}").exists() for pid in before)
    room.configuration.write_text("[factory]\npool = 0\n")
    until("the end", lambda: room.state()["size"] == 0 and not room.ready())
    room.first.kill()
    room.first.wait()
    until("the forkserver's end", lambda: not room.processes())


def test_it_stays_after_the_last_pod_until_it_is_ended(room: PoolRoom) -> None:
    """`hako factory destroy` gives that order; `fill` begins again."""
    room.first.kill()
    room.first.wait()
    os.kill(pid := room.started("last"), signal.SIGTERM)
    until("the last pod's end", lambda: not is_there(pid))
    room.until_ready(2)
    other = room.started("other")
    waiting = room.ready()
    told = forkclient.order("end")
    assert told is not None
    assert (told["size"], told["ready"]) == (0, [])
    until("their end", lambda: not any(map(is_there, waiting)))
    told = forkclient.order("fill")
    assert told is not None
    assert told["size"] == 2
    forkclient.order("end")
    os.kill(other, signal.SIGTERM)
    until("the forkserver's end", lambda: not room.processes())
    assert not list(room.directory.glob("forkserver*"))


def test_a_vm_that_ends_is_replaced(room: PoolRoom) -> None:
    """With its process, which was shot itself or has seen the end of its VM."""
    first, second = room.ready()
    os.kill(first, signal.SIGUSR1)
    until("its process's end", lambda: not is_there(first))
    assert (room.directory / f"closed-{first}").exists()
    os.kill(second, signal.SIGKILL)
    until("two others", lambda: len(ready := room.ready()) == 2 and not {first, second} & set(ready))
    assert room.state()["lost"] == 2


def test_nothing_is_left_of_a_forkserver_that_is_killed(room: PoolRoom) -> None:
    """Those that wait end, with their VMs; a pod that has one goes on."""
    pod = room.started("box")
    room.until_ready(2)
    waiting = room.ready()
    os.kill(room.pid, signal.SIGKILL)
    until("their end", lambda: not any(map(is_there, waiting)))
    assert all((room.directory / f"closed-{pid}").exists() for pid in waiting)
    assert is_there(pod)


def test_one_that_is_being_made_ends_too(room: PoolRoom) -> None:
    """When it is made, and sees that nobody is there any more."""
    (room.directory / "slow").touch()
    os.kill(room.ready()[0], signal.SIGKILL)
    until("one is being made", lambda: room.state()["making"])
    (making,) = room.state()["making"]
    os.kill(room.pid, signal.SIGKILL)
    (room.directory / "slow").unlink()
    until("its end", lambda: not is_there(making))
    assert (room.directory / f"closed-{making}").exists()


def test_failures_are_waited_out(room: PoolRoom) -> None:
    """It is said why there is no VM, and tried again later, not at once and for ever."""
    (room.directory / "refuse").touch()
    for pid in room.ready():
        os.kill(pid, signal.SIGKILL)
    until("a reason", lambda: room.state()["reason"] == "no VM today")
    assert room.state()["lost"] < 6
    (room.directory / "refuse").unlink()
    room.until_ready(2)
    assert room.state()["reason"] == ""


def test_a_caller_that_gives_up_takes_its_vm_along(room: PoolRoom) -> None:
    """A VM that was promised to one pod is not given to another."""
    before = room.ready()
    listener = socket(AF_UNIX, SOCK_STREAM)
    listener.bind(str(room.directory / "l"))
    listener.listen(1)
    invocation = {"namespace": "n", "id": "gone", "debug": False}
    job = {"path": "/none", "invocation": invocation, "sandbox": "gone", "bundle": "/", "options": ["", ""], "began": 0}
    offer = forkclient.reach({**job, "environment": room.environment})
    assert offer is not None
    asked = offer.give(listener)
    assert asked is not None and asked.pid in before
    asked._sock.close()
    until("its end", lambda: not is_there(asked.pid))
    assert (room.directory / f"closed-{asked.pid}").exists()
    room.until_ready(2)
    listener.close()


def test_only_what_leaves_a_tenth(tmp_path: Path) -> None:
    """Of the memory that the host has."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       10240000 kB\nMemFree: 5 kB\nMemAvailable:    1286144 kB\n")
    assert pool.has_room(256, str(meminfo))
    assert not pool.has_room(257, str(meminfo))
    assert pool.has_room(1), "of the real one"


class Loop:
    """Stands in for the forkserver's."""

    def __init__(self) -> None:
        self.watched: dict[int, Any] = {}

    def watch(self, thing: socket | int, action: Any, events: int = 0) -> None:
        self.watched[thing if isinstance(thing, int) else thing.fileno()] = (action, events)

    def forget(self, thing: socket | int) -> None:
        del self.watched[thing if isinstance(thing, int) else thing.fileno()]

    def fork(self) -> int:
        raise AssertionError("nothing is made")


def test_all_go_when_memory_is_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel's trigger is armed where it has one, and answered by letting go of all and by a pause."""
    config = tmp_path / "hako.toml"
    config.write_text("[factory]\npool = 2\n")
    monkeypatch.setenv("HAKO_CONFIG", str(config))
    monkeypatch.setenv("HAKO_STATE_DIR", str(tmp_path))
    loop, pressure = Loop(), tmp_path / "pressure"
    pressure.touch()
    kept = pool.Pool(loop, pressure=str(pressure))
    kept.open()
    assert pressure.read_bytes() == pool.TRIGGER
    (fired,) = [action for action, events in loop.watched.values() if events]
    fired()
    patience = kept.tend()
    assert patience is not None
    assert pool.CALM - 5 < patience <= pool.CALM


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class ForkingLoop(Loop):
    """As the forkserver's, as far as a pool of one process needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def forget(self, thing: socket | int) -> None:
        super().forget(thing)
        if isinstance(thing, socket):
            thing.close()

    def fork(self) -> int:
        pid = os.fork()
        if pid:
            self.made.append(pid)
        return pid

    def happens(self, thing: socket) -> None:
        """Wait for it, and do what is to be done then."""
        assert select.select([thing], [], [], 10)[0], "nothing has happened for 10 s"
        self.watched[thing.fileno()][0]()


def test_starts_put_it_off_but_not_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For a second after each, until a VM is missing for five."""
    config = tmp_path / "hako.toml"
    config.write_text("[factory]\npool = 1\n")
    for name, value in (("HAKO_CONFIG", str(config)), ("HAKO_STATE_DIR", str(tmp_path))):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pool, "time", clock := Clock())
    loop = ForkingLoop()
    kept = pool.Pool(loop, make=lambda config, _log: fakepool.FakeSpare(config), pressure=str(tmp_path / "none"))
    kept.open()

    def start_another() -> None:
        """A pod that gets none."""
        ours, theirs = socketpair()
        kept.starting(ours)
        theirs.close()
        loop.happens(ours)

    try:
        start_another()
        assert kept.tend() is None and len(loop.made) == 1, "the first is not put off"
        (entry,) = kept._waiting()
        loop.happens(entry.sock)
        listener, caller = socketpair()
        job = {"options": [str(config), ""], "environment": dict(os.environ)}
        assert kept.take(job, listener, caller) is entry
        assert kept.tend() == pytest.approx(pool.STARTING)
        os.kill(entry.pid, signal.SIGKILL)
        loop.happens(entry.sock)
        assert kept.tend() == pytest.approx(pool.LULL)
        clock.now += 4.5
        start_another()
        assert kept.tend() == pytest.approx(0.5)
        clock.now += 1
        start_another()
        assert kept.tend() is None and len(loop.made) == 2
    finally:
        for pid in loop.made:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
