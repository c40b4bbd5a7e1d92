"""Further processes: in the container's namespaces by descriptors, with their own identity, limits and
streams.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from agent.api import oci_pb2
from agent.container.container import Container
from agent.errors import AgentError, AlreadyExists, StepError
from agent.process.stdio import StdioPlan
from tests.component.test_container_process import status_of
from tests.framework.box import Finished, Guest, Streams
from tests.framework.inguest import in_guest, need_busybox, need_root

pytestmark = [need_root, need_busybox, pytest.mark.usefixtures("either_way")]


def run(args: list[str] | str, spec: dict[str, Any] | None = None, **process: Any) -> Finished:
    """One exec in a sleeping container."""

    def body(guest: Guest) -> Finished:
        container = guest.started(["sleep", "100"], **(spec or {}))
        return guest.exec(container, args, process=process)

    return in_guest(body)


def namespaces_of(pid: int | str) -> dict[str, str]:
    """kind -> identity"""
    kinds = ("pid", "mnt", "ipc", "uts", "net", "cgroup", "user", "time")
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds}


def simple(*args: str) -> oci_pb2.Process:
    """A process message."""
    return oci_pb2.Process(Args=args, Cwd="/", Env=["PATH=/bin"])


def test_it_is_in_all_namespaces_of_the_container() -> None:
    """And its pid is the agent's number of it."""

    def body(guest: Guest) -> tuple[dict[str, str], dict[str, str], dict[str, str], bool]:
        container = guest.started(["sleep", "100"])
        process = container.exec("e", simple("sleep", "50"), StdioPlan())
        comm = Path(f"/proc/{process.pid}/cmdline").read_text()
        return (
            namespaces_of(container.init.pid),
            namespaces_of(process.pid),
            namespaces_of("self"),
            comm == "sleep\x0050\0",
        )

    init, exec_, agent, is_it = in_guest(body)
    assert exec_ == init
    assert {kind for kind in init if init[kind] != agent[kind]} == {
        "pid",
        "mnt",
        "ipc",
        "uts",
        "net",
        "cgroup",
    }
    assert is_it


def test_its_own_user_groups_and_umask() -> None:
    """Not the container's."""
    user = {"uid": 1000, "gid": 1001, "additionalGids": [7], "umask": 0o027}
    assert run("id -u; id -g; id -G; umask; echo $HOME", user=user).out.split() == [
        "1000", "1001", "1001", "7", "0027", "/home/user",
    ]  # fmt: skip


def test_its_own_capabilities_or_the_containers() -> None:
    """A list of its own is applied as it is; without one it has the container's."""
    own = {"bounding": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"]}
    assert status_of(run(["cat", "/proc/self/status"], capabilities=own).out)["CapEff"].strip() == "1".zfill(16)
    inherited = run(["cat", "/proc/self/status"], capabilities=None).out
    assert status_of(inherited)["CapEff"].strip() == "00000000a80425fb"


def test_its_own_limits_no_new_privs_and_directory() -> None:
    """rlimits, noNewPrivileges, cwd, environment."""
    limits = [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]
    result = run(
        "ulimit -n; pwd; env | sort; cat /proc/self/status",
        rlimits=limits,
        noNewPrivileges=False,
        cwd="/tmp",
        env=["PATH=/bin", "X=y", "HOME=/h"],
    )
    lines = result.out.splitlines()
    assert lines[:2] == ["77", "/tmp"]
    assert {"X=y", "HOME=/h", "PATH=/bin"} <= set(lines[2:8])
    assert status_of(result.out)["NoNewPrivs"] == "0"


def test_the_containers_seccomp_filter() -> None:
    """An exec cannot do what the container may not."""
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
    }
    result = run("grep Seccomp: /proc/self/status; mkdir /x", {"linux": {"seccomp": profile}})
    assert result.out.split() == ["Seccomp:", "2"]
    assert "Function not implemented" in result.err


def test_affinity() -> None:
    """execCPUAffinity.final is what the program has."""
    out = run("grep Cpus_allowed_list /proc/self/status", execCPUAffinity={"final": "0"}).out
    assert out.split() == ["Cpus_allowed_list:", "0"]


def test_streams_and_exit_status() -> None:
    """Its own three streams."""

    def body(guest: Guest) -> Finished:
        container = guest.started(["sleep", "100"])
        return guest.exec(container, "cat; echo err >&2; exit 12", stdin=b"input")

    result = in_guest(body)
    assert (result.status, result.out, result.err) == (12, "input", "err\n")


def test_many_in_a_row_leave_nothing() -> None:
    """No descriptor and no process per exec."""

    def body(guest: Guest) -> tuple[int, int, list[str]]:
        container = guest.started(["sleep", "100"])
        guest.exec(container, "true")
        before = guest.open_files()
        for _ in range(20):
            guest.exec(container, ["true"])
        return before, guest.open_files(), list(container.processes)

    before, after, left = in_guest(body)
    assert after <= before and left == []  # the first one's may still be on their way out at the first look


def test_ids_are_unique() -> None:
    """A second exec under a living id is refused, and so is the init's name."""

    def body(guest: Guest) -> int:
        container = guest.started(["sleep", "100"])
        container.exec("e", simple("sleep", "100"), StdioPlan())
        refused = 0
        for exec_id in ("e", "", container.id):
            try:
                container.exec(exec_id, simple("true"), StdioPlan())
            except AlreadyExists:
                refused += 1
        return refused

    assert in_guest(body) == 3


@pytest.mark.parametrize(
    ("process", "text"),
    [
        ({"args": ["nope"]}, 'exec: "nope": executable file not found in $PATH'),
        ({"args": ["/etc/plain"]}, 'exec: "/etc/plain": permission denied'),
        ({"args": ["sh"], "cwd": "/nope"}, 'chdir to cwd ("/nope") failed: no such file or directory'),
        ({"args": ["/bin/garbage"]}, "exec /bin/garbage: exec format error"),
    ],
)
def test_failures_in_the_words_of_runc(process: dict[str, Any], text: str) -> None:
    """exec() itself fails; nothing is left of the attempt, and the container lives."""

    def body(guest: Guest) -> tuple[str, int, bool]:
        (guest.rootfs() / "bin/garbage").write_bytes(b"\x01")
        (guest.rootfs() / "bin/garbage").chmod(0o755)
        container = guest.started(["sleep", "100"])
        before = guest.open_files()
        try:
            guest.exec(container, "true", process=process)
        except StepError as error:
            assert not container.processes
            return str(error), guest.open_files() - before, container.init.exit_status is None
        return "no failure", 0, False

    # The test's own three ends of the streams stay open until it is over.
    assert in_guest(body) == (f"unable to start container process: {text}", 3, True)


def test_exec_in_a_created_container() -> None:
    """Before start(), as in runc."""

    def body(guest: Guest) -> str:
        container = guest.container(guest.spec(["sleep", "100"]))
        container.create(StdioPlan())
        return guest.exec(container, "hostname").out

    assert in_guest(body) == "box\n"


def test_it_joins_the_cgroup_before_it_runs() -> None:
    """It is counted and limited from its first instruction; the cgroup namespace is the container's."""

    def body(guest: Guest) -> tuple[str, bool]:
        container = guest.started(["sleep", "100"])
        process = container.exec("e", simple("sleep", "100"), StdioPlan())
        inside = guest.exec(container, "grep ^0 /proc/self/cgroup").out
        return inside, set(container.pids()) >= {process.pid, container.init.pid}

    assert in_guest(body, cgroups=True) == ("0::/\n", True)


def test_exec_while_the_container_floods_its_disk_with_processes() -> None:
    """A busy container does not get in the way."""

    def body(guest: Guest) -> str:
        container = guest.started("while true; do true & done")
        time.sleep(0.1)
        try:
            return guest.exec(container, "echo in").out
        finally:
            container.remove()

    assert in_guest(body, cgroups=True) == "in\n"


def test_exec_after_the_init_died() -> None:
    """Before the loop noticed: an error and no hang."""

    def body(guest: Guest) -> str:
        container = guest.started(["sleep", "100"])
        os.kill(container.init.pid, 9)
        time.sleep(0.1)
        try:
            guest.exec(container, "true")
        except AgentError as error:
            return str(error)
        return "no failure"

    text = in_guest(body)
    assert text.startswith(("fork: ", "cannot exec container 'c1': it is stopped"))


def test_a_namespace_is_not_looked_up_again(tmp_path: Path) -> None:
    """An exec joins what create() made, though the init has moved elsewhere since (Kata #13615)."""
    admin = [f"CAP_{name}" for name in ("SYS_ADMIN", "SYS_CHROOT", "SETUID", "SETGID")]
    caps = {"bounding": admin, "permitted": admin, "effective": admin}

    def body(guest: Guest) -> tuple[bool, bool]:
        container: Container = guest.started(["unshare", "-u", "-n", "-m", "sleep", "100"], process={"capabilities": caps})
        held = os.readlink(container.namespace_path("uts"))
        guest.until(lambda: os.readlink(f"/proc/{container.init.pid}/ns/uts") != held)
        process = container.exec("e", simple("sleep", "100"), StdioPlan())
        found, moved = namespaces_of(process.pid), namespaces_of(container.init.pid)
        return found["uts"] == held, found["mnt"] != moved["mnt"]

    assert in_guest(body) == (True, True)


def test_terminal_of_an_exec() -> None:
    """A terminal of the container's devpts, of the size that was asked for."""

    def body(guest: Guest) -> Finished:
        container = guest.started(["sleep", "100"])
        streams = Streams(terminal=True, keep_stdin=True)
        message = oci_pb2.Process(Args=["sh", "-c", "tty; stty size"], Cwd="/", Env=["PATH=/bin"], Terminal=True)
        message.ConsoleSize.Height, message.ConsoleSize.Width = 33, 99
        return streams.finish(guest, container.exec("e", message, streams.plan()))

    assert in_guest(body).out.split() == ["/dev/pts/0", "33", "99"]
