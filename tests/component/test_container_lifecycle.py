"""The verbs of a container in their order: states, signals, pausing, hooks, shared namespaces, and nothing
left behind.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.api import oci_pb2
from agent.container import state
from agent.container.container import Container
from agent.errors import AgentError, NotFound, StepError, WrongState
from agent.process.stdio import StdioPlan
from tests.framework.box import Finished, Guest, Streams
from tests.framework.inguest import in_guest, need_busybox, need_root

pytestmark = [need_root, need_busybox, pytest.mark.usefixtures("either_way")]


def created(guest: Guest, args: list[str] | str, **changes: Any) -> Container:
    """A container that waits for start()."""
    container = guest.container(guest.spec(args, **changes))
    container.create(StdioPlan())
    return container


def processes() -> set[int]:
    """Every process that the stand-in guest sees, but itself and what waits to be reaped by a container's
    init.
    """
    alive = set()
    for name in os.listdir("/proc"):
        if name.isdigit() and Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            alive.add(int(name))
    return alive - {1}


# --- states -------------------------------------------------------------------------------------------------


def test_states_in_order() -> None:
    """creating, created, running, stopped."""

    def body(guest: Guest) -> list[int]:
        container = guest.container(guest.spec("exit 3"))
        seen = [container.status]
        container.create(StdioPlan())
        seen.append(container.status)
        container.start()
        seen.append(container.status)
        guest.wait(container.init)
        seen.append(container.status)
        container.remove()
        return seen

    assert in_guest(body) == [state.CREATING, state.CREATED, state.RUNNING, state.STOPPED]


def test_nothing_of_the_container_runs_before_start() -> None:
    """After create() the init is the agent's own program, waiting."""

    def body(guest: Guest) -> tuple[bool, str, bool]:
        container = created(guest, "touch /ran")
        guest.loop.run_once(0.1)
        ran = (guest.rootfs() / "ran").exists()
        program = os.readlink(f"/proc/{container.init.pid}/exe")
        container.start()
        guest.wait(container.init)
        return ran, program, (guest.rootfs() / "ran").exists()

    before, program, after = in_guest(body)
    assert not before
    assert "python" in program
    assert after


def test_verbs_out_of_time_are_refused() -> None:
    """A second start, an exec in a stopped container, a second create."""

    def body(guest: Guest) -> list[str]:
        container = created(guest, ["sleep", "100"])
        container.start()
        found = []
        attempts: list[Callable[[], None]] = [
            container.start,
            container.resume,
            lambda: container.create(StdioPlan()),
        ]
        for attempt in attempts:
            try:
                attempt()
            except WrongState as error:
                found.append(str(error))
        container.signal("", 9)
        guest.wait(container.init)
        try:
            container.exec("e", oci_pb2.Process(Args=["true"], Cwd="/"), StdioPlan())
        except WrongState as error:
            found.append(str(error))
        return found

    assert in_guest(body) == [
        "cannot start container 'c1': it is running",
        "cannot resume container 'c1': it is running",
        "cannot create container 'c1': it is running",
        "cannot exec container 'c1': it is stopped",
    ]


def test_restart_under_the_same_id() -> None:
    """After remove() the id, the cgroup and the bundle can be used again."""

    def body(guest: Guest) -> list[int]:
        return [guest.run(f"exit {number}").status for number in (1, 2, 3)]

    assert in_guest(body, cgroups=True) == [1, 2, 3]


# --- signals ------------------------------------------------------------------------------------------------


def test_signal_reaches_the_init_only() -> None:
    """Other signals than KILL go to the first process, which may handle them."""

    def body(guest: Guest) -> Finished:
        script = "trap 'echo got; exit 7' USR1; sleep 100 & echo up; wait"
        container = guest.container(guest.spec(script))
        streams = Streams()
        container.create(streams.plan())
        container.start()
        guest.until(lambda: streams.shows("up"))
        container.signal("", 10)
        return streams.finish(guest, container.init)

    result = in_guest(body)
    assert (result.status, result.out) == (7, "up\ngot\n")


def test_kill_with_empty_exec_id_reaches_everybody() -> None:
    """SIGKILL without exec_id: all of the cgroup; with the container's id: the init alone (and its pid
    namespace).
    """

    def body(guest: Guest) -> tuple[int, set[int]]:
        container = guest.started("sleep 100 & sleep 100")
        other = container.exec("e", oci_pb2.Process(Args=["sleep", "100"], Cwd="/", Env=["PATH=/bin"]), StdioPlan())
        container.signal("", 9)
        guest.wait(other)
        return guest.wait(container.init), processes()

    assert in_guest(body, cgroups=True) == (137, set())


def test_signals_to_the_dead_are_no_error() -> None:
    """A process that has exited, also when it is forgotten by the kernel; unknown ones are NOT_FOUND."""

    def body(guest: Guest) -> str:
        container = guest.started("exit 0")
        guest.wait(container.init)
        container.signal("", 15)
        container.signal("", 9)
        container.signal(container.id, 9)
        try:
            container.signal("nobody", 9)
        except NotFound as error:
            return str(error)
        return "no failure"

    assert in_guest(body) == "process 'nobody' not found"


def test_a_created_container_can_be_killed() -> None:
    """Before start() as well."""

    def body(guest: Guest) -> int:
        container = created(guest, "true")
        container.signal("", 9)
        return guest.wait(container.init)

    assert in_guest(body) == 137


def test_pause_and_resume() -> None:
    """A paused container makes no progress, and goes on afterwards."""

    def body(guest: Guest) -> tuple[list[int], list[int]]:
        container = guest.started("while true; do echo x >> /count; sleep 0.01; done")
        count = guest.rootfs() / "count"
        guest.until(count.exists)

        def grown() -> int:
            before = count.stat().st_size
            time.sleep(0.2)
            return count.stat().st_size - before

        container.pause()
        states, growth = [container.status], [grown()]
        container.resume()
        states.append(container.status)
        growth.append(grown())
        container.remove()
        return states, growth

    states, growth = in_guest(body, cgroups=True)
    assert states == [state.PAUSED, state.RUNNING]
    assert growth[0] == 0
    assert growth[1] > 0


def test_a_paused_container_can_be_killed() -> None:
    """SIGKILL must not wait for a resume, and exec in it is refused."""

    def body(guest: Guest) -> tuple[str, int, set[int]]:
        container = guest.started("sleep 100 & sleep 100")
        container.pause()
        refused = ""
        try:
            container.exec("e", oci_pb2.Process(Args=["true"], Cwd="/"), StdioPlan())
        except WrongState as error:
            refused = str(error)
        container.signal("", 9)
        return refused, guest.wait(container.init), processes()

    assert in_guest(body, cgroups=True) == ("cannot exec container 'c1': it is paused", 137, set())


# --- what is left -------------------------------------------------------------------------------------------


def test_remove_leaves_nothing() -> None:
    """No process, no cgroup, no mount, no descriptor, however the container was."""

    def body(guest: Guest) -> list[tuple[int, int, set[int], list[str]]]:
        def left() -> tuple[int, int, set[int], list[str]]:
            # Mounts of others go from here too, when their mount points are removed elsewhere on this
            # machine.
            mounts = Path("/proc/self/mountinfo").read_text().count(str(guest.directory))
            cgroups = [str(path) for path in Path("/sys/fs/cgroup/pod").glob("*")]
            return guest.open_files(), mounts, processes(), cgroups

        guest.run("true")
        found = [left()]
        container = guest.started("sleep 100 & sleep 100")
        container.exec("e", oci_pb2.Process(Args=["sleep", "100"], Cwd="/", Env=["PATH=/bin"]), StdioPlan())
        container.remove()
        found.append(left())
        created(guest, "true").remove()
        found.append(left())
        container = guest.started("sleep 100")
        container.pause()
        container.remove()
        found.append(left())
        container.remove()
        guest.container(guest.spec("true")).remove()
        found.append(left())
        return found

    found = in_guest(body, cgroups=True)
    assert all(each == found[0] for each in found), found
    assert found[0][2] == set()
    assert found[0][3] == []


def test_orphans_of_a_container_are_killed_with_it() -> None:
    """In its own pid namespace everything dies with the init."""

    def body(guest: Guest) -> set[int]:
        container = guest.started("(sleep 100 &); exit 0")
        guest.wait(container.init)
        return processes()

    assert in_guest(body) == set()


# --- shared namespaces --------------------------------------------------------------------------------------


def test_shared_pid_namespace() -> None:
    """A second container sees the first's init as pid 1; when its own ends, its others do too."""

    def body(guest: Guest) -> tuple[str, int, set[int]]:
        pause = guest.started(["sleep", "1000"])
        spec = guest.spec("sleep 1000 & cat /proc/1/cmdline; exit 5")
        container = guest.container(spec, extra_pidns=pause.namespace_path("pid"))
        streams = Streams()
        container.create(streams.plan())
        container.start()
        result = streams.finish(guest, container.init)
        guest.until(lambda: processes() == {pause.init.pid})
        return result.out, result.status, processes() - {pause.init.pid}

    out, status, others = in_guest(body, cgroups=True)
    assert out == "sleep\x001000\x00"
    assert (status, others) == (5, set())


def test_shared_ipc_and_uts_namespaces() -> None:
    """The sandbox's replace the new ones that the spec asks for."""

    def body(guest: Guest) -> tuple[list[str], list[str]]:
        shared = {"ipc": "/proc/self/ns/ipc", "uts": "/proc/self/ns/uts"}
        container = guest.container(
            guest.spec(
                "readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts; readlink /proc/self/ns/net",
                hostname="",
            ),
            shared_namespaces=shared,
        )
        streams = Streams()
        container.create(streams.plan())
        container.start()
        out = streams.finish(guest, container.init).out.split()
        return out, [os.readlink(f"/proc/self/ns/{kind}") for kind in ("ipc", "uts", "net")]

    inside, outside = in_guest(body)
    assert inside[:2] == outside[:2]
    assert inside[2] != outside[2]


def test_time_namespace_with_offsets() -> None:
    """The monotonic clock of the container is ahead; the init itself is inside, and not only its children."""
    linux = {
        "namespaces": [{"type": kind} for kind in ("pid", "mount", "time")],
        "timeOffsets": {"boottime": {"secs": 1000000}, "monotonic": {"secs": 5}},
    }

    def body(guest: Guest) -> tuple[str, float]:
        result = guest.run("cut -d. -f1 /proc/uptime; exec readlink /proc/self/ns/time", linux=linux)
        return result.out, time.clock_gettime(time.CLOCK_BOOTTIME)

    out, now = in_guest(body)
    uptime, namespace = out.split()
    assert int(uptime) > now + 900000
    assert namespace != os.readlink("/proc/self/ns/time")


def test_unreadable_namespace_path_is_named() -> None:
    """The error says which."""
    linux = {"namespaces": [{"type": "network", "path": "/run/no-such-ns"}]}

    def body(guest: Guest) -> str:
        try:
            created(guest, "true", linux=linux)
        except StepError as error:
            return str(error)
        return "no failure"

    assert in_guest(body) == "open namespace: /run/no-such-ns: no such file or directory"


def test_cgroup_namespace_begins_at_the_containers_cgroup() -> None:
    """It is made after the process was placed, so /proc/self/cgroup says "/"."""
    out = in_guest(lambda guest: guest.run("grep ^0 /proc/self/cgroup"), cgroups=True).out
    assert out == "0::/\n"


# --- hooks --------------------------------------------------------------------------------------------------

HOOK = """#!/bin/sh
state=$(cat)
echo "$0 $@ ENV=$MARK $state" >> {log}
"""


def hook(path: str, *args: str, **more: Any) -> dict[str, Any]:
    """An OCI hook."""
    return {"path": path, "args": [path, *args], "env": ["MARK=" + args[0], "PATH=/bin"], **more}


def test_hooks_order_place_and_state() -> None:
    """All six, each in its time, with the state JSON on stdin; the container's own see its mounts and its
    pid.
    """

    def body(guest: Guest) -> tuple[list[str], list[str], int]:
        outside = guest.directory / "hook"
        outside.write_text(HOOK.format(log=guest.directory / "log"))
        outside.chmod(0o755)
        inside = guest.rootfs() / "bin/hook"
        inside.write_text(HOOK.format(log="/log"))
        inside.chmod(0o755)
        names = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
        hooks = {name: [hook(str(outside), name)] for name in names}
        hooks["startContainer"] = [hook("/bin/hook", "startContainer")]
        container = guest.container(guest.spec("sleep 0.2", hooks=hooks, annotations={"key": "value"}, root={"readonly": False}))
        container.create(StdioPlan())
        container.start()
        guest.wait(container.init)
        pid = container.init.pid
        container.remove()
        log = (guest.directory / "log").read_text().splitlines()
        return log, (guest.rootfs() / "log").read_text().splitlines(), pid

    log, inner, pid = in_guest(body)
    kinds = [line.split()[1] for line in log]
    assert kinds == ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
    states = {line.split()[1]: json.loads(line[line.index("{") :]) for line in log + inner}
    assert [states[kind]["status"] for kind in kinds] == [
        "creating",
        "creating",
        "creating",
        "running",
        "stopped",
    ]
    assert states["startContainer"]["status"] == "created"
    assert states["createRuntime"]["pid"] == pid
    assert states["createContainer"]["pid"] == states["startContainer"]["pid"] == 1
    assert "pid" not in states["poststop"]
    assert states["prestart"]["annotations"] == {"key": "value"}
    assert states["prestart"]["id"] == "c1"
    assert all(f"ENV={line.split()[1]} " in line for line in log + inner)


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "startContainer"])
def test_a_failing_hook_fails_the_verb_with_its_output(kind: str) -> None:
    """The message has the hook, its exit status and what it said; nothing is left."""
    failing = {"path": "/bin/sh", "args": ["sh", "-c", "echo no good >&2; exit 9"]}

    def body(guest: Guest) -> str:
        container = guest.container(guest.spec("true", hooks={kind: [failing]}))
        try:
            container.create(StdioPlan())
            container.start()
        except StepError as error:
            container.remove()
            return f"{error} left={processes()}"
        return "no failure"

    expected = f"{kind} hook 0: /bin/sh: exit status 9, output: no good left=set()"
    assert in_guest(body) == expected


def test_a_hook_has_its_time() -> None:
    """It is killed then, and the verb fails."""
    slow = {"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}

    def body(guest: Guest) -> tuple[str, float]:
        began = time.monotonic()
        try:
            created(guest, "true", hooks={"createRuntime": [slow]})
        except StepError as error:
            return str(error), time.monotonic() - began
        return "no failure", 0

    text, seconds = in_guest(body)
    assert text == "createRuntime hook 0: /bin/sleep: took longer than 1 s"
    assert 0.9 < seconds < 5


def test_poststop_failures_are_warnings() -> None:
    """remove() goes on with the next hook and to its end."""

    def body(guest: Guest) -> tuple[list[str], bool]:
        hooks = {
            "poststop": [
                {"path": "/no/such/hook"},
                {"path": "/bin/touch", "args": ["touch", str(guest.directory / "second")]},
            ]
        }
        container = guest.container(guest.spec("true", hooks=hooks))
        container.create(StdioPlan())
        container.start()
        guest.wait(container.init)
        container.remove()
        return container.warnings, (guest.directory / "second").exists()

    warnings, second = in_guest(body)
    assert warnings == ["poststop hook 0: /no/such/hook: No such file or directory"]
    assert second


def test_a_failing_poststart_hook_ends_the_container() -> None:
    """start() fails, and the container does not stay half started."""
    failing = {"path": "/bin/false"}

    def body(guest: Guest) -> tuple[str, int]:
        container = created(guest, ["sleep", "100"], hooks={"poststart": [failing]})
        try:
            container.start()
        except AgentError as error:
            return str(error), guest.wait(container.init)
        return "no failure", 0

    assert in_guest(body) == ("poststart hook 0: /bin/false: exit status 1", 137)
