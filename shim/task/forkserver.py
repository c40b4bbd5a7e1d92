"""A process that has imported everything and forks pod processes: what Python's start and memory cost is paid once.

Owns: its socket, the loop, the fork, who is served. Must not know: what a pod process does, how a child becomes one
(adoption.py), which processes are made before anybody wants them (pool.py). It is started by a pod process as soon as there
are two pods, or one where the configuration wants a pool (forkclient.ensure), and ends with the last pod that it knows (the
one that started it, and those that it made) unless it keeps a pool.

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
from _socket import AF_UNIX, CMSG_SPACE, SCM_RIGHTS, SO_PEERCRED, SOCK_STREAM, SOL_SOCKET, socket, socketpair
from importlib import import_module
from typing import TYPE_CHECKING, Any

from shim.oci import spec as oci
from shim.sandbox import spare as spares
from shim.task import forkclient
from shim.task.adoption import become_pod
from shim.task.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.task.flags import Invocation
    from shim.task.waiting import Make

JOB_LIMIT = 1 << 20
PATIENCE = 5.0  # seconds for a caller to say what it wants, and to say go
BACKLOG = 64
NAMESPACES = ("mnt", "net", "pid", "user", "ipc", "uts", "cgroup")
# What a pod's first container needs beyond daemon.py's own imports; a name that is none ends the forkserver, and a test.
PRELOADED = (
    "shim.task.daemon", "shim.task.api.task_pb2", "shim.task.api.events_pb2", "shim.task.api.options_pb2",
    "shim.network.worker", "shim.sandbox.hooks", "shim.sandbox.cleanup", "shim.stdio.relay", "queue",
)  # fmt: skip
SPEC = b'{"ociVersion": "1.0.0"}'
"""any: msgspec looks at the types of a message when it decodes the first (4 ms)"""


def main(invocation: Invocation, make: Make = spares.make) -> int:
    """Serve until the last pod has ended, in a child, so that whoever started us need not wait for that.

    Nothing is done if another forkserver has the same socket already. `make` makes a VM for the pool.
    """
    first = os.pidfd_open(int(invocation.id))  # who waits for us now need not be there any more when we serve
    if os.fork():
        return 0
    path = invocation.socket
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    os.setsid()
    os.chdir("/")
    for name in PRELOADED:
        import_module(name)
    oci.decode(SPEC, oci.Spec, "")
    gc.collect()
    gc.freeze()
    try:
        listener = _listen(path)
        # Until here a failure is told in the log of the pod that started us; a log that we held open would never end.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, 2)
        forkclient.end_others()
        ForkServer(listener, [lock, null], make).serve(first)
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
    """See the module. `ours`: descriptors that no child must keep, beside those that are watched."""

    def __init__(self, listener: socket, ours: list[int], make: Make) -> None:
        self._listener = listener
        self._ours = ours
        self._poll = select.poll()
        self._watched: dict[int, tuple[socket | int, Callable[[], None]]] = {}
        self._pods: dict[int, int] = {}
        """pidfd -> pid, 0 of the pod that we were made by"""
        self._pool = Pool(self, make)

    def serve(self, first: int) -> None:
        """Fork for whoever asks, until no pod and no pool is left. `first`: pidfd of the pod that we were made by."""
        self.watch(self._listener, self._accept)
        self._add_pod(first, 0)
        self._pool.open()
        while self._pods or self._pool.busy:
            patience = self._pool.tend()
            for fd, _events in self._poll.poll(None if patience is None else int(patience * 1000) + 1):
                if fd in self._watched:
                    self._watched[fd][1]()

    # pool.Watch

    def watch(self, thing: socket | int, action: Callable[[], None], events: int = select.POLLIN) -> None:
        """See pool.Watch."""
        fd = thing if isinstance(thing, int) else thing.fileno()
        self._watched[fd] = (thing, action)
        self._poll.register(fd, events)

    def forget(self, thing: socket | int) -> None:
        """See pool.Watch."""
        fd = thing if isinstance(thing, int) else thing.fileno()
        self._poll.unregister(fd)
        del self._watched[fd]
        _close(thing)

    def fork(self) -> int:
        """See pool.Watch."""
        pid = os.fork()
        if pid == 0:
            for thing, _action in self._watched.values():
                _close(thing)
            for fd in self._ours:
                os.close(fd)
        return pid

    # Pods

    def _add_pod(self, pidfd: int, pid: int) -> None:
        self._pods[pidfd] = pid
        self.watch(pidfd, lambda: self._ended(pidfd))

    def _ended(self, pidfd: int) -> None:
        pid = self._pods.pop(pidfd)
        if pid:
            os.waitpid(pid, 0)
        self.forget(pidfd)

    def _accept(self) -> None:
        """Serve one caller."""
        fd, _address = self._listener._accept()  # type: ignore[attr-defined]
        caller = socket(fileno=fd)
        try:
            caller.settimeout(PATIENCE)
            self._answer(caller, *_receive(caller))
        except (OSError, ValueError, KeyError, IndexError):  # who hangs up or speaks otherwise makes his pod process himself
            pass
        finally:
            caller.close()

    def _answer(self, caller: socket, job: dict[str, Any], listener: socket | None) -> None:
        if "order" in job:
            caller.sendall(json.dumps(self._obey(job["order"])).encode())
        elif listener is not None and _is_like_us(caller):
            entry = self._pool.take(job, listener, caller)
            if entry is not None:
                self._add_pod(entry.pidfd, entry.pid)
            else:
                self._fork_pod(caller, job, listener)

    def _obey(self, order: str) -> dict[str, Any]:
        if order == "fill" and not self._pool.size:
            self._pool.open()
        elif order == "end":
            self._pool.end()
        return self._pool.status()

    def _fork_pod(self, caller: socket, job: dict[str, Any], listener: socket) -> None:
        ours, theirs = socketpair() if self._pool.size else (None, None)
        pid = self.fork()
        if pid == 0:
            if ours is not None:
                ours.close()
            become_pod(caller, job, listener, theirs)
        listener.close()
        self._add_pod(os.pidfd_open(pid), pid)
        if ours is not None and theirs is not None:
            theirs.close()
            self._pool.starting(ours)


def _close(thing: socket | int) -> None:
    if isinstance(thing, int):
        os.close(thing)
    else:
        thing.close()


def _receive(caller: socket) -> tuple[dict[str, Any], socket | None]:
    """A job and the listening socket, or an order without one. Raises OSError, ValueError."""
    head, control, _flags, _address = caller.recvmsg(4, CMSG_SPACE(4))
    fds = [value for level, kind, value in control if (level, kind) == (SOL_SOCKET, SCM_RIGHTS)]
    # closed with the object when something raises
    listener = socket(fileno=struct.unpack("i", fds[0][:4])[0]) if fds else None
    size = int.from_bytes(head, "big")
    if len(head) != 4 or size > JOB_LIMIT:
        raise ValueError("not a job")
    data = b""
    while len(data) < size:
        chunk = caller.recv(size - len(data))
        if not chunk:
            raise ValueError("cut off")
        data += chunk
    job = json.loads(data)
    if not isinstance(job, dict):
        raise ValueError("not a job")
    return job, listener


def _is_like_us(caller: socket) -> bool:
    """The same user, in the same namespaces and cgroups, under the same root."""
    pid, uid, _gid = struct.unpack("3i", caller.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))
    theirs, ours = f"/proc/{pid}", "/proc/self"
    places = [*(f"ns/{name}" for name in NAMESPACES), "root"]
    same = all(os.path.samefile(f"{theirs}/{place}", f"{ours}/{place}") for place in places)
    return uid == os.geteuid() and same and _read(f"{theirs}/cgroup") == _read(f"{ours}/cgroup")


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        return stream.read()
