"""The container's process as the spec wants it: who it is, what it may, where it starts, how it ends."""

from __future__ import annotations

import os
from typing import Any

import pytest

from agent.errors import StepError
from tests.framework.box import Finished, Guest
from tests.framework.inguest import in_guest, need_busybox, need_root

pytestmark = [need_root, need_busybox, pytest.mark.usefixtures("either_way")]

LIBC_SIGNALS = 0b11 << (32 - 1)
"""32 and 33 belong to the C library, which lets nobody set them: in these masks they are what pytest inherited."""


def run(args: list[str] | str, **changes: Any) -> Finished:
    """One container to its end."""
    return in_guest(lambda guest: guest.run(args, **changes))


def status_of(text: str) -> dict[str, str]:
    """/proc/PID/status as a dictionary."""
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def failure(args: list[str] | str, **changes: Any) -> str:
    """The text with which create() or start() fails."""

    def body(guest: Guest) -> str:
        try:
            guest.run(args, **changes)
        except StepError as error:
            return str(error)
        return "no failure"

    return in_guest(body)


# --- who it is ----------------------------------------------------------------------------------------------


def test_user_group_and_additional_groups() -> None:
    """process.user is real, effective and saved id, and the groups are exactly the listed ones."""
    user = {"uid": 1000, "gid": 1001, "additionalGids": [5, 2000]}
    found = status_of(run(["cat", "/proc/self/status"], process={"user": user}).out)
    assert found["Uid"].split() == ["1000"] * 4
    assert found["Gid"].split() == ["1001"] * 4
    assert found["Groups"].split() == ["5", "2000"]


def test_root_has_no_groups_of_the_agent() -> None:
    """Supplementary groups are not inherited."""
    assert status_of(run(["cat", "/proc/self/status"]).out)["Groups"].strip() == ""


def test_string_user_is_resolved_in_the_rootfs() -> None:
    """Kata's string_user names are looked up in the container's own passwd and group."""
    from agent.api import agent_pb2
    from tests.framework.box import Streams

    def body(guest: Guest) -> Finished:
        names = agent_pb2.StringUser(uid="user", additionalGids=["extra"])
        container = guest.container(guest.spec("id -u; id -g; id -G; echo $HOME"), string_user=names)
        streams = Streams()
        container.create(streams.plan())
        container.start()
        return streams.finish(guest, container.init)

    assert in_guest(body).out.split() == ["1000", "1001", "1001", "2000", "/home/user"]


def test_unknown_string_user_fails_create() -> None:
    """A name that the image does not have must not become root."""
    text = failure("true", process={"user": {"uid": 0, "gid": 0, "username": "ghost"}})
    assert "unable to find user ghost" in text


def test_home_is_set_when_absent_only() -> None:
    """HOME comes from the container's passwd; an explicit one stays."""
    assert run("echo $HOME", process={"user": {"uid": 1000, "gid": 0}}).out == "/home/user\n"
    assert run("echo $HOME", process={"env": ["PATH=/bin", "HOME=/x"]}).out == "/x\n"


def test_environment_is_exactly_the_specs() -> None:
    """Nothing of the agent's environment leaks; the later of two wins."""
    env = ["PATH=/bin", "A=1", "A=two words", "HOME=/"]
    assert sorted(run(["env"], process={"env": env}).out.splitlines()) == [
        "A=two words",
        "HOME=/",
        "PATH=/bin",
    ]


# --- what it may --------------------------------------------------------------------------------------------


def test_five_capability_sets() -> None:
    """CapBnd, CapPrm, CapEff, CapInh and CapAmb are what the spec lists."""
    caps = {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_KILL"],
        "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_KILL"],
    }
    user = {"uid": 1000, "gid": 1000}
    found = status_of(run(["cat", "/proc/self/status"], process={"capabilities": caps, "user": user}).out)
    assert int(found["CapBnd"], 16) == 1 << 0 | 1 << 5 | 1 << 13
    # A user's execve keeps what is ambient.
    assert int(found["CapPrm"], 16) == int(found["CapEff"], 16) == 1 << 5
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 1 << 5


def test_root_without_capabilities_has_none() -> None:
    """An absent field means none, also for root."""
    found = status_of(run(["cat", "/proc/self/status"], process={"capabilities": None}).out)
    assert {found[name].strip() for name in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb")} == {"0" * 16}


def test_unknown_capabilities_do_not_fail() -> None:
    """Engines know capabilities that this kernel does not."""
    caps = {"bounding": ["CAP_FROM_THE_FUTURE", "CAP_CHOWN"], "permitted": ["CAP_CHOWN"]}
    found = status_of(run(["cat", "/proc/self/status"], process={"capabilities": caps}).out)
    assert int(found["CapBnd"], 16) == 1


@pytest.mark.parametrize("wanted", [True, False])
def test_no_new_privileges(wanted: bool) -> None:
    """As asked for."""
    found = status_of(run(["cat", "/proc/self/status"], process={"noNewPrivileges": wanted}).out)
    assert found["NoNewPrivs"] == str(int(wanted))


@pytest.mark.parametrize("wanted", [True, False])
def test_seccomp_with_and_without_no_new_privileges(wanted: bool) -> None:
    """The filter is in force before the program, for a process without CAP_SYS_ADMIN, and breaks nothing
    else.
    """
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
    }
    process = {"noNewPrivileges": wanted, "user": {"uid": 1000, "gid": 1000}}
    result = run("cat /proc/self/status; mkdir /tmp/x", process=process, linux={"seccomp": profile})
    found = status_of(result.out)
    assert found["Seccomp"] == "2"
    assert int(found["CapEff"], 16) == 0
    assert "Function not implemented" in result.err


def test_resource_limits() -> None:
    """soft and hard of each; the rest is the agent's."""
    limits = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 1 << 20},
    ]
    text = run(["cat", "/proc/self/limits"], process={"rlimits": limits}).out
    found = {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()}
    assert found["Max open files"] == ["100", "200"]
    assert found["Max core file size"] == ["0", "0"]
    assert found["Max stack size"] == [str(1 << 20)] * 2


def test_small_limits_do_not_break_the_setup() -> None:
    """The limits hold for the program and not for the agent's child that becomes it."""
    limits = [
        {"type": "RLIMIT_NOFILE", "soft": 4, "hard": 4},
        {"type": "RLIMIT_AS", "soft": 8 << 20, "hard": 8 << 20},
    ]
    assert run("echo fine", process={"rlimits": limits}).out == "fine\n"


def test_oom_score_adj() -> None:
    """As asked for (raising it needs no privilege)."""
    assert run(["cat", "/proc/self/oom_score_adj"], process={"oomScoreAdj": 321}).out == "321\n"


def test_umask() -> None:
    """022 unless given; 0 is a value."""
    assert run("umask").out == "0022\n"
    assert run("umask", process={"user": {"uid": 0, "gid": 0, "umask": 0o077}}).out == "0077\n"
    assert run("umask", process={"user": {"uid": 0, "gid": 0, "umask": 0}}).out == "0000\n"


@pytest.mark.skipif(not os.path.exists("/proc/keys"), reason="needs a kernel with CONFIG_KEYS")
def test_session_keyring_of_its_own() -> None:
    """The container does not possess the agent's session keyring."""
    user = {"uid": 1000, "gid": 1000}
    out = run(["cat", "/proc/keys"], linux={"maskedPaths": []}, process={"user": user}).out
    assert "_ses.c1" in out


@pytest.mark.skipif(not os.path.exists("/proc/self/numa_maps"), reason="needs a kernel with CONFIG_NUMA")
def test_memory_policy() -> None:
    """set_mempolicy reaches the program."""
    policy = {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}
    assert "bind=static:0" in run(["cat", "/proc/self/numa_maps"], linux={"memoryPolicy": policy}).out


def test_scheduling_and_personality() -> None:
    """sched_setattr, ioprio_set and personality reach the program."""
    process = {
        "scheduler": {"policy": "SCHED_BATCH", "nice": 4},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
    }
    script = "cut -d' ' -f19,41 /proc/self/stat; cat /proc/self/personality; "
    result = run(script, process=process, linux={"personality": {"domain": "LINUX32"}})
    assert result.out.split() == ["4", "3", "00000008"]


# --- where it starts ----------------------------------------------------------------------------------------


def test_working_directory() -> None:
    """As asked for, and made when it is missing."""
    assert run("pwd", process={"cwd": "/tmp"}).out == "/tmp\n"
    assert run("pwd; ls -ld .", process={"cwd": "/new/deep/place"}).out.startswith("/new/deep/place\ndrwxr-xr-x")


def test_working_directory_that_is_a_file() -> None:
    """create() fails and says where."""
    assert 'chdir to cwd ("/etc/plain") failed: not a directory' in failure("pwd", process={"cwd": "/etc/plain"})


def test_only_the_three_streams_are_open() -> None:
    """No descriptor of the agent reaches the program (CVE-2016-9962, CVE-2024-21626)."""

    def body(guest: Guest) -> Finished:
        extra = os.open("/", os.O_RDONLY)
        os.dup2(extra, 50, inheritable=True)  # even a careless one
        return guest.run("ls /proc/self/fd")

    # ls has the directory itself open.
    assert in_guest(body).out.split() == ["0", "1", "2", "3"]


def test_streams_without_plan_are_dev_null() -> None:
    """A process always has three streams."""
    from agent.process.stdio import StdioPlan

    def body(guest: Guest) -> list[str]:
        container = guest.container(guest.spec("sleep 10"))
        container.create(StdioPlan())
        container.start()
        return [os.readlink(f"/proc/{container.init.pid}/fd/{number}") for number in (0, 1, 2)]

    assert in_guest(body) == ["/dev/null"] * 3


def test_streams_can_be_opened_again_by_a_user() -> None:
    """/dev/stdout and /dev/stderr work for a user who is not root."""
    user = {"uid": 1000, "gid": 1000}
    result = run("echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin", process={"user": user})
    assert (result.out, result.err) == ("out\n", "err\n")


def test_it_leads_a_session_and_ignores_no_signal() -> None:
    """setsid; the signals that Python ignores (SIGPIPE, SIGXFSZ) are at their defaults, none is blocked."""
    result = run(["cat", "/proc/self/stat", "/proc/self/status"])
    pid, session = result.out.split()[0], result.out.split()[5]
    found = status_of(result.out)
    assert (pid, session) == ("1", "1")
    assert int(found["SigIgn"], 16) & ~LIBC_SIGNALS == int(found["SigBlk"], 16) == 0


# --- how it fails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["nothing-here"], 'exec: "nothing-here": executable file not found in $PATH'),
        (["/no/such"], 'exec: "/no/such": stat /no/such: no such file or directory'),
        (["/etc/plain"], 'exec: "/etc/plain": permission denied'),
        (["/etc"], 'exec: "/etc": is a directory'),
        (["plain"], 'exec: "plain": executable file not found in $PATH'),
    ],
)
def test_missing_program_fails_create_in_the_words_of_runc(args: list[str], text: str) -> None:
    """Engines search these words for the exit codes 126 and 127."""
    found = failure(args, process={"args": args, "env": ["PATH=/bin:/etc"]})
    assert found == f"unable to start container process: {text}"


def test_a_file_that_is_no_program_fails_start() -> None:
    """execve's own refusals come from start()."""

    def body(guest: Guest) -> tuple[str, int]:
        (guest.rootfs() / "bin/garbage").write_bytes(b"\x01\x02")
        (guest.rootfs() / "bin/garbage").chmod(0o755)
        from agent.process.stdio import StdioPlan

        container = guest.container(guest.spec(["garbage"]))
        container.create(StdioPlan())
        try:
            container.start()
        except StepError as error:
            return str(error), guest.wait(container.init)
        return "no failure", 0

    text, status = in_guest(body)
    assert text == "unable to start container process: exec /bin/garbage: exec format error"
    assert status != 0


def test_a_user_without_the_right_to_execute() -> None:
    """Permissions are those of the process's user and not the agent's."""

    def body(guest: Guest) -> str:
        (guest.rootfs() / "bin/busybox").chmod(0o700)
        try:
            guest.run("true", process={"user": {"uid": 1000, "gid": 1000}, "capabilities": None})
        except StepError as error:
            return str(error)
        return "no failure"

    assert in_guest(body).endswith("exec /bin/sh: permission denied")


# --- how it ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_exit_status(status: int) -> None:
    """The program's own."""
    assert run(f"exit {status}").status == status


def test_exit_by_signal_is_128_and_its_number() -> None:
    """As a shell says it."""

    def body(guest: Guest) -> int:
        container = guest.started(["sleep", "100"])
        container.signal("", 9)
        return guest.wait(container.init)

    assert in_guest(body) == 137


def test_a_failed_create_leaves_nothing() -> None:
    """No process, no descriptor, no cgroup membership of a container that never was."""

    def body(guest: Guest) -> tuple[int, int, list[str]]:
        guest.spec("true")
        guest.started("true").remove()
        before = guest.open_files()
        for _ in range(3):
            try:
                guest.run(["missing"])
            except StepError:
                pass
        pids = [name for name in os.listdir("/proc") if name.isdigit()]
        return before, guest.open_files(), pids

    before, after, pids = in_guest(body)
    assert after == before
    assert pids == ["1"]


def test_the_agents_signal_handling_is_not_the_childs() -> None:
    """The child does not catch SIGCHLD: the agent's wake-up descriptor is another file's number in it."""
    import signal

    look = {"path": "/bin/sh", "args": ["sh", "-c", "grep -E 'SigCgt|SigIgn' /proc/1/status > /caught"]}

    def body(guest: Guest) -> str:
        _, writer = os.pipe2(os.O_NONBLOCK)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        guest.run("true", hooks={"startContainer": [dict(look, env=["PATH=/bin"])]})
        signal.set_wakeup_fd(-1)
        return (guest.rootfs() / "caught").read_text()

    ignored, caught = (int(line.split()[1], 16) for line in in_guest(body).splitlines())
    assert not ignored & ~LIBC_SIGNALS
    assert not caught >> (signal.SIGCHLD - 1) & 1
