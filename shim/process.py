"""The one door for host subprocesses; nothing else starts a process.

Owns: how children are started (posix_spawn: neither fork in a threaded process nor `import subprocess`),
confined, watched (pidfd), worded and reaped. Must not know: what the programs are. Called by everything
that runs a program.

A child gets /dev/null as stdin, a chosen environment, default signals and only the descriptors that it is
handed, under the same numbers. `Confinement` says what else is done before its program runs: cgroups by us
while the child waits, limits and directory by confine.py, ids, no_new_privs and the parent-death signal by
setpriv; a network namespace by the thread that starts it, which is in it for that moment. What is not asked
for costs nothing: 1 ms for a plain child, 2 ms with setpriv. Moving a task to another cgroup takes the kernel
about 10 ms (a grace period of RCU for the first of several moves), so a thread does that while the caller goes
on.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple, TypeAlias

from shim.errors import HakoError
from shim.watch import TAIL_BYTES, Tail, watcher

NEW_NETNS: Final = "new"
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT: Final = {"PATH": PATH}  # without LANG: a program with a locale opens twelve files for it
DIE_WITH_PARENT: Final = "--pdeathsig=KILL"  # setpriv(1)
# Seconds until a process that does not end after SIGKILL is reported: it hangs in the kernel (a dead disk).
KILL_DEADLINE = 10.0
TRACED_PAUSE = 0.001  # seconds between looks whether it can be reaped


class Confinement(NamedTuple):
    """What a child is put into. Host paths; ids as numbers; `rlimits` maps a name such as NOFILE to (soft,
    hard).

    `cgroup_dirs` has one directory per cgroup hierarchy. `netns` is None (ours), NEW_NETNS (an empty one)
    or a path. With `uid` None the child keeps our user.
    """

    cgroup_dirs: tuple[str, ...] = ()
    netns: str | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    rlimits: tuple[tuple[str, int, int], ...] = ()
    no_new_privs: bool = True
    die_with_parent: bool = True
    oom_score_adj: int | None = None
    umask: int | None = None
    cwd: str | None = None


class CommandFailed(HakoError):
    """A program could not be started, failed or took too long: a pasteable command and its last words."""

    def __init__(self, argv: Sequence[str], reason: str, stderr: str = "", status: int | None = None) -> None:
        said = stderr.strip()
        super().__init__(f"{reason}: {said}" if said else reason, step="run", object=quoted(argv))
        self.status = status
        self.stderr = stderr


def quoted(argv: Sequence[str]) -> str:
    """`argv` as one line that can be pasted into a shell."""
    import shlex

    return shlex.join(argv)


def confined_argv(argv: Sequence[str], confine: Confinement | None, go: int | None = None) -> list[str]:
    """`argv` behind the tools that carry out `confine`; pure. `go` (3 - 9) is the pipe on which the child awaits a line."""
    if confine is None:
        return list(argv)
    return [*_await_go(go, confine), *_confine_py(confine), *_setpriv(confine), *argv]


def _await_go(go: int | None, confine: Confinement) -> list[str]:
    """A shell starts in a millisecond, an interpreter in eight. Without a line (we have died) the program does not run.

    The signal for our death is asked for before that line: who dies in between is missed by neither. A change of the user
    takes it back (Linux, commit_creds), after which setpriv asks once more. POSIX has redirections of one digit only.
    """
    if go is None:
        return []
    bound = ["/usr/bin/setpriv", DIE_WITH_PARENT, "--"] if confine.die_with_parent else []
    return [*bound, "/bin/sh", "-c", f'read -r line <&{go} && exec {go}<&- "$@"', "hako-go"]


def _confine_py(confine: Confinement) -> list[str]:
    words = [f"rlimit={name}:{soft}:{hard}" for name, soft, hard in confine.rlimits]
    words += [] if confine.oom_score_adj is None else [f"oom_score_adj={confine.oom_score_adj}"]
    words += [] if confine.umask is None else [f"umask={confine.umask:o}"]
    words += [] if confine.cwd is None else [f"cwd={confine.cwd}"]
    if not words:
        return []
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "confine.py")
    return [_system_python(), "-IS", script, *words, "--"]


def _system_python() -> str:
    """The interpreter without its virtual environment: that start-up alone costs 10 ms."""
    base = getattr(sys, "_base_executable", "") or sys.executable
    return os.path.realpath(base)


def _setpriv(confine: Confinement) -> list[str]:
    words = []
    if confine.uid is not None:
        gid = confine.uid if confine.gid is None else confine.gid
        groups = f"--groups={','.join(map(str, confine.groups))}" if confine.groups else "--clear-groups"
        words += [f"--reuid={confine.uid}", f"--regid={gid}", groups]
        words += ["--bounding-set=-all", "--inh-caps=-all"]
    words += ["--no-new-privs"] if confine.no_new_privs else []
    words += [DIE_WITH_PARENT] if confine.die_with_parent else []
    return ["/usr/bin/setpriv", *words, "--"] if words else []


class Child:
    """A running program. Whoever holds it ends it: `terminate`, or `wait` for its own end."""

    def __init__(self, pid: int, argv: Sequence[str], stderr: Tail | None) -> None:
        self.pid: Final = pid
        self.pidfd = os.pidfd_open(pid)
        self.argv: Final = tuple(argv)
        self._stderr = stderr
        self._status: int | None = None
        self._reaping = threading.RLock()
        self._guard = threading.Lock()
        self._on_exit: list[Callable[[], None]] | None = None

    def __del__(self) -> None:
        self._close_pidfd()

    def _close_pidfd(self) -> None:
        pidfd, self.pidfd = getattr(self, "pidfd", -1), -1
        if pidfd >= 0:
            os.close(pidfd)

    def poll(self) -> int | None:
        """The exit status if the child has ended (negative: the signal that killed it), else None. Reaps."""
        with self._reaping:
            if self._status is None:
                try:
                    self._reap(os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG))
                except ChildProcessError:  # somebody else waited for all children of this process
                    self._status = -signal.SIGKILL
            return self._status

    def _reap(self, info: os.waitid_result | None) -> None:
        if info is not None:
            self._status = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait `timeout` seconds (None: for ever) for the end: the status as in `poll`, or None.

        A child that somebody traces (ptrace(2)) has ended some time before it can be reaped.
        """
        left: Callable[[], float | None] = deadline(timeout) if timeout is not None else _for_ever
        while self._status is None and _wait_readable(self.pidfd, left()) and self.poll() is None and left() != 0:
            time.sleep(TRACED_PAUSE)
        return self.poll()

    def while_unreaped(self, action: Callable[[], None]) -> None:
        """Call `action` while the pid is surely this child's; not if it has been reaped."""
        with self._reaping:
            if self._status is None:
                action()

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if the child has ended."""
        self.while_unreaped(lambda: self._send(number))

    def _send(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass

    def kill(self) -> None:
        """SIGKILL, whose effect is not waited for."""
        self.signal(signal.SIGKILL)

    def terminate(self, timeout: float = 2.0) -> int:
        """SIGTERM, after `timeout` seconds (0: at once) SIGKILL. Reaped on return; may be repeated."""
        if timeout > 0:
            self.signal(signal.SIGTERM)
        status = self.wait(timeout)
        if status is None:
            self.kill()
            status = self.wait(KILL_DEADLINE)
        if status is None:
            raise CommandFailed(self.argv, f"process {self.pid} does not end after SIGKILL")
        return status

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Call back once, in the watching thread, when the child has ended; not after `close`."""
        with self._guard:
            if self._on_exit is not None:
                self._on_exit.append(callback)
                return
            self._on_exit = [callback]
        watcher().add(self.pidfd, self._ended)

    def _ended(self) -> bool:
        self.poll()
        with self._guard:
            callbacks, self._on_exit = self._on_exit or [], None
        for callback in callbacks:
            callback()
        return False

    def stderr_tail(self) -> str:
        """The last 16 KiB of what the child wrote to stderr, if it was not sent elsewhere."""
        return self._stderr.text() if self._stderr is not None else ""

    def failure(self) -> CommandFailed:
        """How the child ended, as an error to raise."""
        status = self.poll()
        return CommandFailed(self.argv, describe_status(status), self.stderr_tail(), status)

    def close(self) -> None:
        """Stop watching an ended child and release its descriptors; `stderr_tail` and `poll` still answer."""
        watcher().remove(self.pidfd)
        with self._guard:
            self._on_exit = None
        if self.poll() is not None:
            self._close_pidfd()
        if self._stderr is not None:
            self._stderr.close()


def families(pids: Sequence[int]) -> list[int]:
    """These processes with all that descend from them, parents first. One look at the whole of /proc: some milliseconds."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as stream:
                parent = int(stream.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):  # it has just ended
            continue
        children.setdefault(parent, []).append(int(name))
    found = list(pids)
    for pid in found:  # grows meanwhile
        found += children.get(pid, [])
    return found


def describe_status(status: int | None) -> str:
    """Words for an exit status as `Child.poll` gives it."""
    if status is None:
        return "is still running"
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _wait_readable(fd: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0, int(timeout * 1000))))


class _Spawner:
    """The thread that starts children which die with us: PDEATHSIG fires when its spawning thread ends."""

    def __init__(self) -> None:
        import queue

        self.pid = os.getpid()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="hako-spawn", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    def __call__(self, start: Callable[[], int]) -> int:
        """Run `start` in the thread; its pid or its exception."""
        done = threading.Event()
        result: list[int | OSError] = []

        def job() -> None:
            try:
                result.append(start())
            except OSError as exc:
                result.append(exc)
            done.set()

        self._jobs.put(job)
        done.wait()
        if isinstance(result[0], OSError):
            raise result[0]
        return result[0]


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()
_inherited_kept = False


def _no_log(line: str) -> None:
    """What `log` is until somebody wants to see the commands."""


log: Callable[[str], None] = _no_log
_FileActions: TypeAlias = list[tuple[int, int, str, int, int] | tuple[int, int, int]]


@contextmanager
def _thread_in(netns: str | None) -> Iterator[None]:
    """Let this thread, and what it starts, be in a network namespace (see Confinement). Raises OSError."""
    if netns is None:
        yield
        return
    from agent.linux import syscalls

    with ExitStack() as undo:
        ours = _opened("/proc/thread-self/ns/net", undo)
        if netns == NEW_NETNS:
            syscalls.unshare(syscalls.CLONE_NEWNET)
        else:
            syscalls.setns(_opened(netns, undo), syscalls.CLONE_NEWNET)
        undo.callback(syscalls.setns, ours, syscalls.CLONE_NEWNET)
        yield


def _opened(path: str, undo: ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    undo.callback(os.close, fd)
    return fd


def _start(argv: Sequence[str], files: _FileActions, env: Mapping[str, str], lasting: bool, netns: str | None) -> int:
    """posix_spawn of `argv` with default signals, in the spawner thread if it must die with us."""
    global _spawner

    def start() -> int:
        with _thread_in(netns):
            return os.posix_spawn(
                argv[0],
                list(argv),
                dict(env),
                file_actions=files,
                setsigmask=(),
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT),  # Python ignores or handles these
            )

    log(quoted(argv))
    _keep_inherited_descriptors()
    if not lasting:
        return start()
    with _spawner_lock:
        if _spawner is None or _spawner.pid != os.getpid():
            _spawner = _Spawner()
    return _spawner(start)


def _keep_inherited_descriptors() -> None:
    """Once per process: what our own parent left open for us must not reach our children.

    Everything that Python opens is close-on-exec already (PEP 446).
    """
    global _inherited_kept
    if _inherited_kept:
        return
    _inherited_kept = True
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2:
                fcntl.fcntl(int(name), fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        except OSError:  # the descriptor that listed the directory
            pass


def _found(argv: Sequence[str]) -> list[str]:
    """`argv` with its program's full path. Raises CommandFailed if there is no such program."""
    program = argv[0]
    if "/" not in program:
        import shutil

        program = shutil.which(program, path=PATH) or program
    if not os.access(program, os.X_OK):
        raise CommandFailed(argv[:1], "there is no such program", status=127)
    return [program, *argv[1:]]


def _file_actions(stdio: Sequence[int | None], kept: Sequence[int]) -> _FileActions:
    """Descriptors 0 - 2 (None: /dev/null) and the kept ones (dup2 onto itself clears FD_CLOEXEC)."""
    actions: _FileActions = []
    for target, source in enumerate(stdio):
        if source is None:
            actions.append((os.POSIX_SPAWN_OPEN, target, "/dev/null", os.O_RDWR, 0))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, source, target))
    for fd in kept:
        actions.append((os.POSIX_SPAWN_DUP2, fd, fd))
    return actions


def spawn(
    argv: Sequence[str],
    *,
    fds: Mapping[str, int] | None = None,
    confine: Confinement | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    env: Mapping[str, str] = ENVIRONMENT,
) -> Child:
    """Start `argv` and return at once.

    `fds` are handed down under their own numbers (the names are for the reader). `stdin` and `stdout` None
    are /dev/null; `stderr` None is kept for `Child.stderr_tail`. Raises CommandFailed when the program is
    not there or one of its cgroups is not. A step of the confinement that fails later ends the child with a status
    that is not 0 and a line on stderr.
    """
    program = _found(argv)
    tail, stderr_write = _stderr_tail() if stderr is None else (None, stderr)
    try:
        child = _spawn(program, list((fds or {}).values()), confine, (stdin, stdout, stderr_write), env, tail)
    except OSError as exc:
        reason = ": ".join(str(part) for part in (exc.strerror, exc.filename) if part)
        raise CommandFailed(argv, f"cannot start: {reason}") from exc
    finally:
        if stderr is None:
            os.close(stderr_write)
    return child


def _stderr_tail() -> tuple[Tail, int]:
    read, write = os.pipe2(os.O_CLOEXEC)
    return Tail(read, TAIL_BYTES), write


def _spawn(
    argv: list[str],
    fds: list[int],
    confine: Confinement | None,
    stdio: tuple[int | None, int | None, int],
    env: Mapping[str, str],
    tail: Tail | None,
) -> Child:
    lasting = confine is not None and confine.die_with_parent
    netns = confine.netns if confine is not None else None
    cgroup_dirs = confine.cgroup_dirs if confine is not None else ()
    if not cgroup_dirs:
        pid = _start(confined_argv(argv, confine), _file_actions(stdio, fds), env, lasting, netns)
        return Child(pid, argv, tail)
    with ExitStack() as ours:
        cgroups = _Cgroups(cgroup_dirs, ours)
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        ours.callback(os.close, go_write)
        go = next(number for number in range(3, 10) if number not in fds)
        try:
            files = [*_file_actions(stdio, fds), (os.POSIX_SPAWN_DUP2, go_read, go)]
            child = Child(_start(confined_argv(argv, confine, go), files, env, lasting, netns), argv, tail)
        finally:
            os.close(go_read)
        said = os.dup(stdio[2])
        ours.callback(os.close, said)
        held = ours.pop_all()
    threading.Thread(target=lambda: cgroups.release(child, go_write, said, held), name="hako-cgroups", daemon=True).start()
    return child


class _Cgroups:
    """The cgroups that a waiting child goes into. Raises OSError for one that is not there."""

    def __init__(self, directories: Sequence[str], closing: ExitStack) -> None:
        self._files: dict[str, int] = {}
        for directory in directories:
            path = os.path.join(directory, "cgroup.procs")
            self._files[path] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            closing.callback(os.close, self._files[path])

    def release(self, child: Child, go: int, said: int, held: ExitStack) -> None:
        """Put it there and let it run. If that fails its stderr says so (`said`), and it ends without its go."""
        with held:
            try:
                child.while_unreaped(lambda: self._move(child.pid))
                os.write(go, b"go\n")
            except OSError as exc:
                os.write(said, f"hako: {exc.filename}: {exc.strerror}\n".encode())

    def _move(self, pid: int) -> None:
        for path, file in self._files.items():
            try:
                os.write(file, str(pid).encode())
            except OSError as exc:
                raise OSError(exc.errno, exc.strerror, path) from exc


def run(
    argv: Sequence[str],
    timeout: float,
    input: bytes | None = None,
    *,
    fds: Mapping[str, int] | None = None,
    confine: Confinement | None = None,
    env: Mapping[str, str] = ENVIRONMENT,
) -> bytes:
    """Run `argv` to its end within `timeout` seconds and return its stdout.

    Raises CommandFailed for a status other than 0, a signal, the deadline (the child is ended) or a missing
    program.
    """
    given, out, err = (os.memfd_create(name) for name in ("stdin", "stdout", "stderr"))
    try:
        os.pwrite(given, input or b"", 0)
        child = spawn(argv, fds=fds, confine=confine, stdin=given, stdout=out, stderr=err, env=env)
        status = _finish(child, timeout)
        if status != 0:
            reason = describe_status(status) if status is not None else f"took more than {timeout:g} s"
            raise CommandFailed(argv, reason, _contents(err)[-TAIL_BYTES:].decode("utf-8", "replace"), status)
        return _contents(out)
    finally:
        for fd in (given, out, err):
            os.close(fd)


def _finish(child: Child, timeout: float) -> int | None:
    """The status of a child that ended in time, None of one that had to be ended."""
    try:
        return child.wait(timeout)
    finally:
        child.terminate(0)
        child.close()


def _contents(memfd: int) -> bytes:
    size = os.fstat(memfd).st_size
    return os.pread(memfd, size, 0)


def _for_ever() -> None:
    """The seconds left where there is no deadline."""


def deadline(timeout: float) -> Callable[[], float]:
    """A function that tells the seconds left of `timeout`, at least 0."""
    end = time.monotonic() + timeout
    return lambda: max(0.0, end - time.monotonic())
