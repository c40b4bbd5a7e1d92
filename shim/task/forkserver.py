"""A process that has imported everything and forks pod processes: what Python's start and memory cost is paid once.

Owns: its socket, the fork, how a forked process becomes like one that `start` had made itself (environment, cgroups,
command line as ps shows it). Must not know: what a pod process does. It is started by a pod process as soon as there are
two pods (forkclient.ensure), and ends with the last pod that it knows: the one that started it, and those that it made.

It forks only for a caller that is like itself: the same user, namespaces, root and cgroups. Everybody else makes his pod
process himself, as if there were no forkserver.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import select
import struct
from _socket import AF_UNIX, CMSG_SPACE, SCM_RIGHTS, SO_PEERCRED, SOCK_STREAM, SOL_SOCKET, socket
from importlib import import_module
from typing import Any

from shim import trace
from shim.task import forkclient
from shim.task.flags import Invocation
from shim.task.options import Options

JOB_LIMIT = 1 << 20
PATIENCE = 5.0  # seconds for a caller to say what it wants, and to say go
BACKLOG = 64
NAMESPACES = ("mnt", "net", "pid", "user", "ipc", "uts", "cgroup")
# What a pod's first container needs beyond daemon.py's own imports; a name that is none ends the forkserver, and a test.
PRELOADED = (
    "shim.task.daemon", "shim.task.api.task_pb2", "shim.task.api.events_pb2", "shim.task.api.options_pb2",
    "shim.network.worker", "shim.sandbox.hooks", "shim.sandbox.cleanup", "shim.stdio.relay", "queue",
)  # fmt: skip


def main(invocation: Invocation) -> int:
    """Serve until the last pod has ended, in a child, so that whoever started us need not wait for that.

    Nothing is done if another forkserver has the same socket already.
    """
    if os.fork():
        return 0
    path = invocation.socket
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        first = os.pidfd_open(int(invocation.id))
    except (BlockingIOError, ProcessLookupError):
        return 0
    os.setsid()
    os.chdir("/")
    for name in PRELOADED:
        import_module(name)
    gc.collect()
    gc.freeze()
    try:
        listener = _listen(path)
        # Until here a failure is told in the log of the pod that started us; a log that we held open would never end.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, 2)
        ForkServer(listener, [lock, null]).serve(first)
    finally:
        os.unlink(path)
        os.unlink(f"{path}.lock")
    return 0


def _listen(path: str) -> socket:
    """Only root gets at it: 0600 from the beginning, by the umask."""
    if os.path.exists(path):
        os.unlink(path)
    umask = os.umask(0o177)
    try:
        listener = socket(AF_UNIX, SOCK_STREAM)
        listener.bind(path)
        listener.listen(BACKLOG)
    finally:
        os.umask(umask)
    return listener


class ForkServer:
    """See the module. `ours`: descriptors that no pod process must keep."""

    def __init__(self, listener: socket, ours: list[int]) -> None:
        self._listener = listener
        self._ours = ours
        self._pods: dict[int, int] = {}
        """pidfd -> pid"""

    def serve(self, first: int) -> None:
        """Fork for whoever asks, until no pod is left. `first`: pidfd of the pod that we were made by."""
        self._pods[first] = 0
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(first, select.POLLIN)
        while self._pods:
            for fd, _events in poll.poll():
                if fd != self._listener.fileno():
                    poll.unregister(fd)
                    self._ended(fd)
                elif (made := self._accept()) >= 0:
                    poll.register(made, select.POLLIN)

    def _ended(self, pidfd: int) -> None:
        pid = self._pods.pop(pidfd)
        if pid:
            os.waitpid(pid, 0)
        os.close(pidfd)

    def _accept(self) -> int:
        """Serve one caller; the pidfd of the pod process, -1 if there is none."""
        fd, _address = self._listener._accept()  # type: ignore[attr-defined]
        caller = socket(fileno=fd)
        try:
            caller.settimeout(PATIENCE)
            return self._fork(caller, *_receive(caller)) if _is_like_us(caller) else -1
        except (OSError, ValueError, KeyError):  # who hangs up or speaks otherwise makes his pod process himself
            return -1
        finally:
            caller.close()

    def _fork(self, caller: socket, job: dict[str, Any], listener: socket) -> int:
        pid = os.fork()
        if pid == 0:
            self._become_pod(caller, job, listener)
        listener.close()
        pidfd = os.pidfd_open(pid)
        self._pods[pidfd] = pid
        return pidfd

    def _become_pod(self, caller: socket, job: dict[str, Any], listener: socket) -> None:
        """In the child: like a process that `start` has forked. Never returns."""
        try:
            self._listener.close()
            for fd in (*self._ours, *self._pods):
                os.close(fd)
            adopt(job)
            caller.sendall(b"%0*d" % (forkclient.PID_DIGITS, os.getpid()))
            if caller.recv(1) != forkclient.GO:
                os._exit(0)
            caller.close()
        except BaseException:  # noqa: BLE001 - a forked child must not return into the parent's code
            os._exit(1)
        from shim.task.bootstrap import become_daemon

        invocation, options = Invocation(), Options(*job["options"])
        for name, value in job["invocation"].items():
            setattr(invocation, name, value)
        become_daemon(listener, job["path"], invocation, job["sandbox"], job["bundle"], options)


def _receive(caller: socket) -> tuple[dict[str, Any], socket]:
    """The job and the listening socket. Raises OSError, ValueError."""
    head, control, _flags, _address = caller.recvmsg(4, CMSG_SPACE(4))
    fds = [value for level, kind, value in control if (level, kind) == (SOL_SOCKET, SCM_RIGHTS)]
    if len(fds) != 1:
        raise ValueError("no descriptor")
    listener = socket(fileno=struct.unpack("i", fds[0][:4])[0])  # closed with the object when something raises
    size = int.from_bytes(head, "big")
    if len(head) != 4 or size > JOB_LIMIT:
        raise ValueError("not a job")
    data = b""
    while len(data) < size:
        chunk = caller.recv(size - len(data))
        if not chunk:
            raise ValueError("cut off")
        data += chunk
    job: dict[str, Any] = json.loads(data)
    return job, listener


def _is_like_us(caller: socket) -> bool:
    """The same user, in the same namespaces and cgroups, under the same root."""
    pid, uid, _gid = struct.unpack("3i", caller.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))
    theirs, ours = f"/proc/{pid}", "/proc/self"
    places = [*(f"ns/{name}" for name in NAMESPACES), "root"]
    same = all(os.path.samefile(f"{theirs}/{place}", f"{ours}/{place}") for place in places)
    return uid == os.geteuid() and same and _read(f"{theirs}/cgroup") == _read(f"{ours}/cgroup")


def adopt(job: dict[str, Any]) -> None:
    """Take over what a child of the caller would have inherited, and a command line that says which pod this is."""
    os.environ.clear()
    os.environ.update(job["environment"])
    trace.adopt_process_start(job["began"])
    invocation = job["invocation"]
    words = ["containerd-shim-hako-v2", "-namespace", invocation["namespace"], "-id", invocation["id"], "start"]
    write_command_line(words)


def write_command_line(words: list[str]) -> None:
    """What /proc/PID/cmdline and ps show: written over our own arguments, as far as there is room.

    arg_start and arg_end are fields 48 and 49 of /proc/PID/stat (proc(5)).
    """
    fields = _read("/proc/self/stat").rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    text = b"\0".join(word.encode() for word in words)[: end - start - 1]
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(text.ljust(end - start, b"\0"))


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        return stream.read()
