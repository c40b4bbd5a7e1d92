"""Containers through a real containerd: what `ctr` sees with hako is what it sees with runc.

Every test runs on both runtimes; runc proves the test, hako has to do the same. Nothing may be left behind.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.framework.containerd import HAKO, RUNC, Containerd, Result
from tests.framework.ociimage import REFERENCE
from tests.framework.ptyrun import run_in_terminal

pytestmark = [
    pytest.mark.vm,
    pytest.mark.pods,
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: containerd, QEMU's taps"),
]


@pytest.fixture(params=[RUNC, HAKO], ids=["runc", "hako"])
def runtime(request: pytest.FixtureRequest) -> str:
    """The runtime's name."""
    return str(request.param)


class Runner:
    """`ctr run` with one runtime and fresh ids."""

    numbers = 0

    def __init__(self, engine: Containerd, runtime: str) -> None:
        self.engine = engine
        self.runtime = runtime

    def arguments(self, *command: str, flags: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...]]:
        """A fresh id and ctr's words."""
        Runner.numbers += 1
        name = self.engine.unique(f"t{Runner.numbers}")
        return name, ("run", "--runtime", self.runtime, *flags, REFERENCE, name, *command)

    def run(self, *command: str, flags: tuple[str, ...] = (), check: bool = True, input: bytes | None = None) -> Result:
        """In the foreground, removed afterwards."""
        _name, words = self.arguments(*command, flags=("--rm", *flags))
        return self.engine.ctr(*words, check=check, input=input)

    def detached(self, *command: str, flags: tuple[str, ...] = ()) -> str:
        """In the background; its id."""
        name, words = self.arguments(*command, flags=("-d", *flags))
        self.engine.ctr(*words)
        return name

    def exec(self, name: str, *command: str, check: bool = True, input: bytes | None = None) -> Result:
        """A further process."""
        Runner.numbers += 1
        words = ("task", "exec", "--exec-id", f"e{Runner.numbers}", name, *command)
        return self.engine.ctr(*words, check=check, input=input)

    def delete(self, name: str) -> int:
        """Delete a task that has ended; its status (ctr warns of one that is not 0)."""
        said = self.engine.ctr("task", "delete", name, check=False)
        self.engine.ctr("container", "delete", name)
        found = re.search(rb"exit code (\d+)", said.stderr)
        return int(found[1]) if found else said.returncode

    def remove(self, name: str) -> None:
        """Kill and delete."""
        self.engine.ctr("task", "kill", "-s", "SIGKILL", name, check=False)
        self.wait_for(name, "STOPPED")
        self.engine.ctr("task", "delete", name)
        self.engine.ctr("container", "delete", name)

    def wait_for(self, name: str, status: str, timeout: float = 20) -> None:
        """Until the task has this status."""
        deadline = time.monotonic() + timeout
        while self.engine.tasks().get(name) != status:
            assert time.monotonic() < deadline, f"{name} is {self.engine.tasks().get(name)}, not {status}"
            time.sleep(0.05)


@pytest.fixture
def ctr(engine: Containerd, runtime: str) -> Runner:
    """A runner on one runtime."""
    return Runner(engine, runtime)


@pytest.mark.every_containerd
def test_output_and_status_in_the_foreground(ctr: Runner) -> None:
    """stdout and stderr are apart and complete, the status is the process's."""
    result = ctr.run("sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (result.stdout, result.returncode) == (b"out\n", 7), result.stderr
    assert b"err\n" in result.stderr


def test_environment_directory_and_host_name(ctr: Runner) -> None:
    """What the image and the flags say reaches the process."""
    flags = ("--env", "COLOUR=blue", "--cwd", "/tmp")
    result = ctr.run("sh", "-c", "echo $COLOUR $PATH; pwd; id -u; cat /etc/os-release", flags=flags)
    assert result.stdout.decode().splitlines() == ["blue /bin:/usr/bin", "/tmp", "0", "ID=hako-busybox"]


def test_large_output_is_complete(ctr: Runner) -> None:
    """8 MiB, byte for byte."""
    script = "seq 1 1200000"
    expected = hashlib.md5("".join(f"{n}\n" for n in range(1, 1200001)).encode()).hexdigest()
    assert hashlib.md5(ctr.run("sh", "-c", script).stdout).hexdigest() == expected


@pytest.mark.every_containerd
def test_piped_input_to_its_end(ctr: Runner) -> None:
    """A megabyte on stdin comes back, and the end of the pipe ends `cat`."""
    data = os.urandom(1 << 20)
    assert ctr.run("cat", input=data).stdout == data


@pytest.mark.every_containerd
def test_a_missing_program_is_an_error_that_leaves_nothing(ctr: Runner) -> None:
    """Not a hang, not a status: ctr fails with words, and the same id could be used again."""
    result = ctr.run("/bin/no-such-program", check=False)
    assert result.returncode == 1
    assert re.search(rb"no such file|not found", result.stderr)


@pytest.mark.every_containerd
def test_a_terminal(ctr: Runner) -> None:
    """-t: stdin and stdout are a terminal of the caller's size; what is typed arrives; ^D ends."""
    _name, words = ctr.arguments("sh", "-c", "sleep 1; test -t 0 && test -t 1 && stty size; cat", flags=("--rm", "-t"))
    argv = ctr.engine.argv(*words)
    output = run_in_terminal(argv, ctr.engine.environment, rows=33, columns=101, typed=b"typed\n\x04", after=b"101")
    text = output.decode().replace("\r\n", "\n")
    assert "33 101" in text and text.count("typed") == 2


@pytest.mark.every_containerd
def test_a_terminal_is_resized(ctr: Runner) -> None:
    """The caller's new size arrives while the process runs."""
    script = "echo up; until [ \"$(stty size)\" = '40 90' ]; do sleep 0.1; done; echo it is"
    _name, words = ctr.arguments("sh", "-c", script, flags=("--rm", "-t"))
    argv = ctr.engine.argv(*words)
    output = run_in_terminal(argv, ctr.engine.environment, rows=33, columns=101, typed=b"", after=b"up", resized=(40, 90))
    assert b"it is" in output


@pytest.mark.every_containerd
def test_detached_life(ctr: Runner) -> None:
    """run -d, ls, ps, metrics, pause, resume, kill with a handler, delete with its status."""
    name = ctr.detached("sh", "-c", "trap 'exit 42' TERM; touch /tmp/trapped; while :; do sleep 0.1; done")
    engine = ctr.engine
    assert engine.tasks()[name] == "RUNNING"
    # A signal that PID 1 of a namespace has no handler for yet is lost (pid_namespaces(7)).
    while ctr.exec(name, "test", "-e", "/tmp/trapped", check=False).returncode:
        time.sleep(0.05)
    pids = engine.ctr("task", "ps", name).stdout.decode().splitlines()[1:]
    assert pids and os.path.exists(f"/proc/{pids[0].split()[0]}")
    engine.ctr("task", "pause", name)
    assert engine.tasks()[name] == "PAUSED"
    engine.ctr("task", "resume", name)
    assert engine.tasks()[name] == "RUNNING"
    engine.ctr("task", "kill", "-s", "SIGTERM", name)
    ctr.wait_for(name, "STOPPED")
    assert ctr.delete(name) == 42


@pytest.mark.every_containerd
def test_metrics(engine: Containerd) -> None:
    """`ctr task metrics` shows the guest's counters (hako only: runc needs cgroups that this kind of host
    lacks).
    """
    ctr = Runner(engine, HAKO)
    name = ctr.detached("sh", "-c", "while :; do sleep 0.1; done")
    text = engine.ctr("task", "metrics", name).stdout.decode()
    values = dict(re.findall(r"^(\S+)\s+(\d+)\s*$", text, re.M))
    assert int(values["memory.usage"]) > 0 and int(values["pids.current"]) >= 1
    ctr.remove(name)


@pytest.mark.every_containerd
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_signals_end_with_128_plus_n(ctr: Runner, number: int) -> None:
    """SIGKILL: 137. SIGTERM is ignored by an init without a handler, in a VM as under runc."""
    name = ctr.detached("sleep", "1000")
    ctr.engine.ctr("task", "kill", "-s", str(int(number)), name)
    if number == signal.SIGTERM:
        time.sleep(0.5)
        assert ctr.engine.tasks()[name] == "RUNNING"
        ctr.engine.ctr("task", "kill", "-s", "SIGKILL", name)
    ctr.wait_for(name, "STOPPED")
    assert ctr.delete(name) == 137


@pytest.mark.every_containerd
def test_exec(ctr: Runner) -> None:
    """Output, status, input to its end, several at once, a missing program; the container lives on."""
    name = ctr.detached("sleep", "1000")
    assert ctr.exec(name, "sh", "-c", "echo hi; echo oops >&2; exit 5", check=False).returncode == 5
    result = ctr.exec(name, "sh", "-c", "echo hi; echo oops >&2")
    assert result.stdout == b"hi\n" and b"oops" in result.stderr
    data = os.urandom(300_000)
    assert ctr.exec(name, "cat", input=data).stdout == data
    missing = ctr.exec(name, "/no/such", check=False)
    assert missing.returncode == 1 and missing.stderr
    words = [("task", "exec", "--exec-id", f"p{n}", name, "sh", "-c", f"sleep 0.2; echo {n}") for n in range(4)]
    running = [ctr.engine.popen(*each, stdin=subprocess.DEVNULL) for each in words]
    assert [each.communicate(timeout=30)[0] for each in running] == [b"%d\n" % n for n in range(4)]
    assert ctr.engine.tasks()[name] == "RUNNING"
    ctr.remove(name)


def test_home_is_that_of_the_containers_passwd(ctr: Runner) -> None:
    """As it is when the process starts; an environment that says it otherwise is left alone."""
    script = "echo $HOME; sed -i s,:/root:,:/elsewhere:, /etc/passwd; sleep 1000"
    name = ctr.detached("sh", "-c", script)
    until = "for i in 1 2 3 4 5 6 7 8 9; do grep -q elsewhere /etc/passwd && break; sleep 0.5; done"
    ctr.exec(name, "sh", "-c", until)
    assert ctr.exec(name, "sh", "-c", "echo $HOME").stdout == b"/elsewhere\n"
    assert ctr.run("sh", "-c", "echo $HOME").stdout == b"/root\n"
    assert ctr.run("sh", "-c", "echo $HOME", flags=("--env", "HOME=/x")).stdout == b"/x\n"
    ctr.remove(name)


@pytest.mark.every_containerd
def test_exec_with_a_terminal(ctr: Runner) -> None:
    """A terminal of the caller's size."""
    name = ctr.detached("sleep", "1000")
    argv = ctr.engine.argv("task", "exec", "--exec-id", "tt", "-t", name, "sh", "-c", "sleep 1; stty size; cat")
    output = run_in_terminal(argv, ctr.engine.environment, rows=20, columns=77, typed=b"abc\n\x04", after=b"77")
    assert b"20 77" in output and output.count(b"abc") == 2
    ctr.remove(name)


def test_volumes_and_a_read_only_root(ctr: Runner, tmp_path: Path) -> None:
    """A directory and a file of the host, read-write and read-only; writes arrive, refused ones do not."""
    (tmp_path / "data").mkdir()
    (tmp_path / "file").write_text("from the host\n")
    flags = (
        "--mount", f"type=bind,src={tmp_path}/data,dst=/data,options=rbind:rw",
        "--mount", f"type=bind,src={tmp_path}/file,dst=/etc/file,options=rbind:ro",
        "--read-only",
    )  # fmt: skip
    script = "cat /etc/file; echo new > /data/new; touch /etc/file /x 2>/dev/null; echo $?"
    result = ctr.run("sh", "-c", script, flags=flags)
    assert result.stdout == b"from the host\n1\n"
    assert (tmp_path / "data/new").read_text() == "new\n"
    assert (tmp_path / "file").read_text() == "from the host\n"


def test_memory_limit_holds(engine: Containerd) -> None:
    """More than the limit is killed: 137, and containerd hears of it before the exit (hako only, as above)."""
    ctr = Runner(engine, HAKO)
    events = engine.popen("events")
    try:
        script = "a=x; while :; do a=$a$a; done"
        result = ctr.run("sh", "-c", script, flags=("--memory-limit", "33554432"), check=False)
        time.sleep(0.5)
    finally:
        events.terminate()
    topics = re.findall(rb"/tasks/(\w+)", events.communicate(timeout=10)[0])
    assert result.returncode == 137
    assert topics.index(b"oom") < topics.index(b"exit")


def test_the_kernel_is_the_guests(engine: Containerd) -> None:
    """It is a VM after all."""
    release = Runner(engine, HAKO).run("uname", "-r").stdout.decode().strip()
    assert release != os.uname().release


@pytest.mark.every_containerd
def test_nothing_is_left_of_a_container(ctr: Runner) -> None:
    """After run --rm: no process, mount, cgroup, socket or file."""
    ctr.run("true")
    ctr.engine.assert_nothing_left()
