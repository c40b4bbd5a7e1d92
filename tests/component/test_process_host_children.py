"""shim/process.py with real children: descriptors, confinement, end, last words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.process import NEW_NETNS, PATH, CommandFailed, Confinement, run, spawn

PYTHON = "/usr/bin/python3"
ROOT = Path(__file__).resolve().parents[2]


TRACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(0x4206, int(sys.argv[1]), None, None):  # PTRACE_SEIZE
    sys.exit(os.strerror(ctypes.get_errno()))
print("attached", flush=True)
sys.stdin.read()
"""


def python(code: str) -> list[str]:
    return [PYTHON, "-IS", "-c", textwrap.dedent(code)]


def test_run_returns_stdout_and_feeds_stdin() -> None:
    """Input and output of any size pass without a deadlock."""
    data = os.urandom(1 << 20)
    assert run(["/bin/cat"], timeout=10, input=data) == data


def test_child_has_nothing_of_ours() -> None:
    """A child sees the chosen environment, /dev/null as stdin and no descriptor that it was not given."""
    script = "from shim.process import run; print(run(['/bin/ls', '/proc/self/fd'], 10).decode().split())"
    read, write = os.pipe()
    parent = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, pass_fds=[write], capture_output=True, text=True, timeout=10
    )
    os.close(read)
    os.close(write)
    assert parent.stdout.strip() == "['0', '1', '2', '3']", parent.stderr  # 3: the directory that ls reads
    null = spawn(python("import os,sys; sys.exit(os.path.samestat(os.fstat(0), os.stat('/dev/null')))"))
    assert null.wait(10) == 1
    assert run(["/usr/bin/env"], timeout=10) == f"PATH={PATH}\n".encode()


def test_descriptors_keep_their_numbers() -> None:
    """A descriptor that is handed down has the same number in the child, close-on-exec or not."""
    read, write = os.pipe()
    try:
        child = spawn(python(f"import os; os.write({write}, b'hi')"), fds={"write": write})
        assert os.read(read, 10) == b"hi"
        assert child.wait(10) == 0
    finally:
        os.close(read)
        os.close(write)


def test_signals_are_default_in_the_child() -> None:
    """Python ignores SIGPIPE; its children must not inherit that."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        status = run(["/bin/grep", "-E", "SigIgn|SigBlk", "/proc/self/status"], timeout=10).decode().split()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    blocked, ignored = int(status[1], 16), int(status[3], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1) | 1 << (signal.SIGINT - 1))
    assert blocked == 0


def test_failed_command_says_what_and_why() -> None:
    """Status and stderr are in the error."""
    said = r"ls /does-not-exist: exited with status 2: .*No such file"
    with pytest.raises(CommandFailed, match=said) as caught:
        run(["ls", "/does-not-exist"], timeout=10)
    assert caught.value.status == 2


def test_missing_program_is_said_at_once() -> None:
    """A program that is not installed is an error of spawn, not a child with status 127."""
    with pytest.raises(CommandFailed, match=r"no-such-program: there is no such program"):
        spawn(["no-such-program", "--x"])


def test_deadline_ends_the_command() -> None:
    """A command that hangs, and ignores SIGTERM, is gone when run() raises."""
    start = time.monotonic()
    with pytest.raises(CommandFailed, match=r"took more than 0.3 s"):
        run(python("import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"), timeout=0.3)
    assert time.monotonic() - start < 5


def test_terminate_asks_first_then_kills() -> None:
    """SIGTERM is honoured; who ignores it is killed after the deadline; the second call changes nothing."""
    polite = spawn(["/bin/sleep", "60"])
    assert polite.terminate(5) == -signal.SIGTERM
    assert polite.terminate(5) == -signal.SIGTERM
    read, write = os.pipe()
    stubborn = spawn(
        python(
            "import signal,time; signal.signal(15, signal.SIG_IGN); print('x', flush=True); time.sleep(60)"
        ),
        stdout=write,
    )
    os.read(read, 1)
    assert stubborn.terminate(0.1) == -signal.SIGKILL
    assert not os.path.exists(f"/proc/{stubborn.pid}")
    os.close(read)
    os.close(write)


def test_exit_is_noticed_and_reaped_without_waiting() -> None:
    """on_exit calls back once the child has died by itself, and no zombie stays."""
    ended = threading.Event()
    child = spawn(["/bin/sleep", "60"])
    child.on_exit(ended.set)
    os.kill(child.pid, signal.SIGKILL)
    assert ended.wait(5)
    assert not os.path.exists(f"/proc/{child.pid}")
    assert child.poll() == -signal.SIGKILL


def test_stderr_tail_is_bounded_and_complete() -> None:
    """A child that writes 1 MB to stderr never blocks; its last words are there as soon as it has ended."""
    code = "import sys; sys.stderr.write('x' * 1000000 + 'last words'); sys.stderr.flush()"
    child = spawn(python(code))
    assert child.wait(10) == 0
    tail = child.stderr_tail()
    child.close()
    assert tail.endswith("last words")
    assert len(tail) == 16384
    assert child.stderr_tail() == tail


def test_confined_child_is_what_it_should_be(tmp_path: Path) -> None:
    """User, groups, capabilities, no_new_privs, limits, umask, directory and network are as asked."""
    code = """
        import os, resource
        status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())
        print(os.getuid(), os.getgid(), os.getgroups(), int(status['CapEff'], 16), int(status['CapBnd'], 16),
              status['NoNewPrivs'].strip(), resource.getrlimit(resource.RLIMIT_NOFILE), os.getcwd(),
              len(open('/proc/net/dev').read().splitlines()), status['Umask'].strip())
    """
    os.chmod(tmp_path, 0o755)
    confine = Confinement(
        uid=65534, gid=65534, netns=NEW_NETNS, rlimits=(("NOFILE", 64, 128),), umask=0o27, cwd="/usr"
    )
    out = run(python(code), timeout=10, confine=confine).decode().strip()
    assert out == "65534 65534 [] 0 0 1 (64, 128) /usr 3 0027"


def test_limit_above_the_hard_one_is_set_as_far_as_allowed() -> None:
    """Without CAP_SYS_RESOURCE a limit cannot be raised: the child gets the ceiling instead of failing."""
    confine = Confinement(rlimits=(("NOFILE", 1 << 40, 1 << 40),))
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    assert int(run(python(code), timeout=10, confine=confine)) > 0


def test_failing_confinement_step_is_told() -> None:
    """A child that cannot be confined does not run, and says which step failed."""
    with pytest.raises(CommandFailed, match=r"hako confine: cwd=/no/such: No such file") as caught:
        run(["/bin/true"], timeout=10, confine=Confinement(cwd="/no/such"))
    assert caught.value.status == 126


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A child of the pids hierarchy (or of the unified one) that goes away with the test."""
    base = "/sys/fs/cgroup/pids" if os.path.isdir("/sys/fs/cgroup/pids") else "/sys/fs/cgroup"
    path = f"{base}/hako-test-{os.getpid()}"
    os.mkdir(path)
    yield path
    os.rmdir(path)


def test_child_is_in_its_cgroup_before_its_program_runs(cgroup: str) -> None:
    """The first instruction of the program runs inside the cgroup."""
    confine = Confinement(cgroup_dirs=(cgroup,))
    out = run(["/bin/cat", "/proc/self/cgroup"], timeout=10, confine=confine).decode()
    assert f"/{os.path.basename(cgroup)}" in out


def test_child_that_cannot_join_its_cgroup_never_runs(cgroup: str, tmp_path: Path) -> None:
    """A missing cgroup is an error of spawn, and the program was not started."""
    proof = tmp_path / "ran"
    with pytest.raises(CommandFailed, match=r"cannot start: No such file or directory: /.*nope/cgroup.procs"):
        spawn(["/usr/bin/touch", str(proof)], confine=Confinement(cgroup_dirs=(cgroup + "/nope",)))
    time.sleep(0.1)
    assert not proof.exists()


def test_a_child_that_its_cgroup_refuses_says_so_and_never_runs(tmp_path: Path) -> None:
    """What goes wrong while the child waits is in its stderr: here a file that takes no pid."""
    (tmp_path / "cgroup.procs").symlink_to("/proc/version")
    proof = tmp_path / "ran"
    child = spawn(["/usr/bin/touch", str(proof)], confine=Confinement(cgroup_dirs=(str(tmp_path),)))
    assert child.wait(10) not in (0, None)
    assert "cgroup.procs: " in str(child.failure())
    assert not proof.exists()


def test_a_child_on_its_way_into_a_cgroup_can_be_watched() -> None:
    """The kernel takes its time for the move; whoever wants to hear of the child's end does not wait for that."""
    child = spawn(["/bin/sleep", "60"])
    moving, moved = threading.Event(), threading.Event()

    def move() -> None:
        moving.set()
        moved.wait(10)

    thread = threading.Thread(target=lambda: child.while_unreaped(move))
    thread.start()
    try:
        assert moving.wait(10)
        watching = threading.Thread(target=lambda: child.on_exit(lambda: None))
        watching.start()
        watching.join(5)
        assert not watching.is_alive()
    finally:
        moved.set()
        thread.join()
        child.terminate(0)
        child.close()


def test_a_child_that_is_traced_is_waited_for() -> None:
    """Its descriptor says that it has ended before its parent may reap it: the tracer comes first."""
    child = spawn(["/bin/sleep", "60"])
    tracer = subprocess.Popen([sys.executable, "-c", TRACER, str(child.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert tracer.stdin is not None and tracer.stdout is not None
    try:
        assert tracer.stdout.readline() == b"attached\n"
        child.signal(signal.SIGKILL)
        assert child.wait(0.2) is None
        threading.Timer(0.2, tracer.stdin.close).start()
        assert child.wait(10) == -signal.SIGKILL
    finally:
        tracer.kill()
        tracer.wait()
        child.terminate(0)
        child.close()


def test_children_die_with_their_parent(tmp_path: Path) -> None:
    """When the pod process is killed, nothing of it stays, whichever thread asked for the child."""
    script = """
        import sys, threading, time
        sys.path.insert(0, sys.argv[1])
        from shim.process import Confinement, spawn
        children = []
        sleep = lambda: children.append(spawn(["/bin/sleep", "77"], confine=Confinement()))
        thread = threading.Thread(target=sleep)
        thread.start()
        thread.join()
        time.sleep(0.2)
        print(children[0].pid, children[0].poll(), flush=True)
        time.sleep(60)
    """
    read, write = os.pipe()
    parent = spawn([sys.executable, "-c", textwrap.dedent(script), str(ROOT)], stdout=write)
    os.close(write)
    with os.fdopen(read) as stream:
        pid, status = stream.readline().split()
    assert status == "None"  # the end of the thread that asked has not killed it
    parent.terminate(0)
    end = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and _state(pid) != "Z" and time.monotonic() < end:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{pid}") or _state(pid) == "Z"


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_confine_py_imports_little() -> None:
    """confine.py is executed for every confined child: it may load neither json nor typing nor ctypes."""
    code = "import sys, runpy; before = set(sys.modules); import confine; print(*(set(sys.modules) - before))"
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'shim')!r}); " + code.replace(", runpy", "")
    modules = run(python(code), timeout=10).decode().split()
    assert sorted(modules) == ["__future__", "confine"]
