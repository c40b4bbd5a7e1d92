"""A process that stands by: what it becomes, what it does not fit, and that nothing is left of it."""

from __future__ import annotations

import os
import re
import time
from typing import Any

import pytest

from agent.cgroups import NullCgroup
from agent.container import child, handshake, premounts
from agent.container.plan import plan_init
from agent.container.standby import Standby
from agent.errors import StepError
from agent.linux import syscalls
from shim.runspec import defaults
from tests.framework.box import Guest, Streams, bind, default_mounts
from tests.framework.inguest import in_guest, need_busybox, need_root

pytestmark = [need_root, need_busybox]

SHELL = "cat /proc/self/cgroup; hostname; readlink /proc/1/exe; ls /proc/self/fd; echo $0 >&2; exit 3"


def standby(guest: Guest, shared: dict[str, str] | None = None) -> Standby:
    """One in a cgroup of its own."""
    return Standby(shared or {}, guest.cgroup("standby"))


def children() -> set[str]:
    """Pids of all other processes of the guest's pid namespace."""
    return {name for name in os.listdir("/proc") if name.isdigit()} - {str(os.getpid())}


def test_it_is_the_containers_first_process() -> None:
    """Its pid is the init's, and nobody can tell the container from one that was forked for it."""

    def body(guest: Guest) -> None:
        outputs = []
        for waiting in (None, standby(guest)):
            container = guest.container(guest.spec(SHELL, hostname="both"))
            streams = Streams()
            container.create(streams.plan(), waiting)
            assert waiting is None or container.init.pid == waiting._pid
            container.start()
            outputs.append(repr(streams.finish(guest, container.init)))
            container.remove()
        assert outputs[0] == outputs[1]
        assert "status=3" in outputs[0]
        assert children() == set()

    in_guest(body)


LOOK = "cut -d' ' -f4- /proc/self/mountinfo; stat -c '%n %F %a %t:%T %u:%g %N' /dev/* /dev/.; ls /proc/self/ns"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"linux": {"maskedPaths": [], "readonlyPaths": []}},
        {"linux": {"maskedPaths": [*premounts.MASKED, "/etc/hostname"], "readonlyPaths": [*premounts.READONLY, "/etc"]}},
        {"linux": {"devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 7}]}},
        {"linux": {"devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]}},
        {"linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]}},
        {"linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "network")]}},
        {"mounts": [bind("/proc", "/proc2"), *default_mounts()]},
        {"mounts": [mount for mount in default_mounts() if mount["destination"] != "/sys"]},
        {"mounts": [mount for mount in default_mounts() if mount["destination"] != "/dev/shm"]},
        {"mounts": defaults.default_mounts()[:-3]},
        {"mounts": [mount | {"options": [*mount["options"], "ro"]} for mount in default_mounts()]},
    ],
    ids=["usual", "nothing hidden", "more hidden", "another null", "one more device", "own ipc", "own network",
         "a bind first", "no sysfs", "no shm", "no mqueue", "read-only"],
)  # fmt: skip
def test_it_sees_what_a_forked_one_sees(changes: dict[str, Any]) -> None:
    """Mounts, devices, what is hidden and read-only: the mount tables are the same but for their numbers."""

    def body(guest: Guest) -> None:
        found = []
        for waiting in (None, standby(guest)):
            container = guest.container(guest.spec(LOOK, **changes))
            streams = Streams()
            container.create(streams.plan(), waiting)
            assert waiting is None or container.init.pid == waiting._pid
            container.start()
            said = streams.finish(guest, container.init)
            found.append(sorted(re.sub(r"(shared|master):\d+ ", "", line) for line in said.out.splitlines()))
            container.remove()
        assert found[0] == found[1]
        assert any("/dev/pts" in line for line in found[0])

    in_guest(body)


@pytest.mark.parametrize(
    ("written", "left"), [(defaults.default_mounts(), {"/run"}), (default_mounts(), set())], ids=["hako run", "ctr run"]
)
def test_the_usual_ones_are_taken(written: list[dict[str, Any]], left: set[str]) -> None:
    """What hako run and engines write is what stands ready."""

    def body(guest: Guest) -> None:
        spaces = [{"type": kind} for kind in ("pid", "mount", "uts", "cgroup")]
        hidden = {"maskedPaths": list(defaults.MASKED_PATHS), "readonlyPaths": list(defaults.READONLY_PATHS)}
        spec = guest.spec("true", mounts=written, linux={"namespaces": spaces, **hidden})
        plan = plan_init("c", spec, "/run", NullCgroup(), {}, None, None)
        ready = premounts.Premounts(child.SCRATCH)
        ready.serve(plan)
        assert {key[0] for key in ready._trees} == left
        assert (plan.devices, plan.readonly_paths, plan.links_made) == ([], [], True)
        assert set(plan.masked_paths) == set(defaults.MASKED_PATHS) - set(premounts.MASKED)

    in_guest(body)


def test_one_that_has_ended_is_replaced() -> None:
    """Somebody killed it while it waited: the container's first process is forked as ever."""

    def body(guest: Guest) -> None:
        waiting = standby(guest)
        os.kill(waiting._pid, 9)
        container = guest.container(guest.spec("cat; echo error >&2; exit 7"))
        streams = Streams(b"in\n")
        container.create(streams.plan(), waiting)
        assert container.init.pid != waiting._pid
        container.start()
        said = streams.finish(guest, container.init)
        assert (said.status, said.out, said.err) == (7, "in\n", "error\n")
        container.remove()
        assert children() == set()

    in_guest(body)


def test_an_order_that_is_too_long_is_not_given() -> None:
    """A spec that fits no message: forked."""

    def body(guest: Guest) -> None:
        environment = [f"V{number}={'x' * 1000}" for number in range(handshake.MAX_MESSAGE // 1000 + 1)]
        waiting = standby(guest)
        container = guest.container(guest.spec("echo out; exit 4", process={"env": ["PATH=/bin", *environment]}))
        streams = Streams()
        container.create(streams.plan(), waiting)
        assert container.init.pid != waiting._pid
        container.start()
        said = streams.finish(guest, container.init)
        assert (said.status, said.out) == (4, "out\n")
        container.remove()
        assert children() == set()

    in_guest(body)


@pytest.mark.parametrize(
    "changes",
    [
        {"linux": {"namespaces": [{"type": "mount"}]}},
        {"linux": {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "mount"}]}},
        {"linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "user")]}},
        {"linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "time")]}},
        {"linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network", "path": "/proc/1/ns/net"}]}},
        {"mounts": [{"destination": "/m", "type": "bind", "source": "/tmp", "options": ["bind", "idmap"]}]},
    ],
    ids=["no pid namespace", "another's pid namespace", "user", "time", "another's network", "id-mapped mount"],
)
def test_what_it_cannot_become(changes: dict[str, Any]) -> None:
    """Whatever it would have to be given, or to undo."""

    def body(guest: Guest) -> None:
        waiting = standby(guest)
        assert waiting.fits(guest.spec("true"))
        assert not waiting.fits(guest.spec("true", **changes))
        waiting.end()

    in_guest(body)


def test_it_has_joined_the_sandboxs_namespaces() -> None:
    """So a container that wants another one, or none, is not for it; one that names the sandbox's is."""

    def body(guest: Guest) -> None:
        own = os.open("/proc/self/ns/uts", os.O_RDONLY)
        syscalls.unshare(syscalls.CLONE_NEWUTS)
        syscalls.sethostname("sandbox")
        theirs = os.open("/proc/self/ns/uts", os.O_RDONLY)
        syscalls.setns(own, syscalls.CLONE_NEWUTS)
        path = f"/proc/{os.getpid()}/fd/{theirs}"
        waiting = standby(guest, {"uts": path})

        def spaces(*uts: dict[str, str]) -> dict[str, Any]:
            return {"namespaces": [{"type": "pid"}, {"type": "mount"}, *uts]}

        assert not waiting.fits(guest.spec("true", linux=spaces()))
        assert not waiting.fits(guest.spec("true", linux=spaces({"type": "uts", "path": "/proc/1/ns/uts"})))
        spec = guest.spec(["hostname"], linux=spaces({"type": "uts", "path": path}), hostname="")
        assert waiting.fits(spec)
        container = guest.container(spec, shared_namespaces={"uts": path})
        streams = Streams()
        container.create(streams.plan(), waiting)
        container.start()
        assert streams.finish(guest, container.init).out == "sandbox\n"
        container.remove()

    in_guest(body)


def test_nothing_is_left_of_a_container_that_fails() -> None:
    """It goes with it, before it has become anything and after."""

    def body(guest: Guest) -> None:
        before = guest.open_files()
        for changes in ({"process": {"args": ["/missing"]}}, {"process": {"cwd": "relative"}}):
            container = guest.container(guest.spec("true", **changes))
            with pytest.raises(Exception, match=r"missing|cwd"):
                container.create(Streams().plan(), standby(guest))
            assert children() == set()
        assert guest.open_files() == before

    in_guest(body)


def test_nothing_is_left_of_one_that_is_not_wanted() -> None:
    """Neither a process nor a descriptor; also if it has ended and was reaped by somebody else."""

    def body(guest: Guest) -> None:
        before = guest.open_files()
        standby(guest).end()
        reaped = standby(guest)
        os.kill(reaped._pid, 9)
        os.waitpid(reaped._pid, 0)
        reaped.end()
        assert children() == set()
        assert guest.open_files() == before

    in_guest(body)


def test_one_that_cannot_stand_by_says_why() -> None:
    """A namespace that is not there: the step and the path, at once."""

    def body(guest: Guest) -> None:
        begin = time.monotonic()
        with pytest.raises(StepError, match="/proc/1/ns/nothing"):
            standby(guest, {"uts": "/proc/1/ns/nothing"})
        assert time.monotonic() - begin < 10
        assert children() == set()

    in_guest(body)
