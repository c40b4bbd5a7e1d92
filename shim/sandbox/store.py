"""What is on disk about one pod: enough to clean up after any of its processes was killed at any moment.

Owns: state.json (written to a temporary, renamed, after every change and before what it describes is made) and
the lock beside it, which the pod process holds as long as it lives. Must not know: how to take things away
(cleanup.py). Written by sandbox.py and container.py, read by `delete` and by the `hako` command. Light imports
only. Nothing is synced: of what is described here nothing survives a failure of the machine, but only of processes, and
where /run is no tmpfs each of a start's five changes would wait for the disk.

The lock answers "is the pod's process alive?" without a pid: the kernel drops it with the last descriptor.
"""

from __future__ import annotations

import fcntl
import os
import time

from shim.errors import AlreadyExists, HakoError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

STEP = "keep the pod's state"
STATE_FILE = "state.json"
LOCK_FILE = "lock"
NEW = ".new"  # appended to the name of a file that is being written
VERSION = 1
PREDECESSOR = 2.0  # seconds for a process that had the same pod to let go of it


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot (proc(5), stat, field 22); 0 if there is none.

    A pid together with this number names one process for ever.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return int(stream.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


class Store:
    """The state of one pod.

    `state` is the content; change it only through `change`, from one thread at a time.
    """

    def __init__(self, directory: str, lock_fd: int, state: dict[str, Any]) -> None:
        import threading

        self.directory = directory
        self.state = state
        self._lock_fd = lock_fd
        self._guard = threading.Lock()

    @classmethod
    def create(cls, directory: str, sandbox_id: str, namespace: str) -> Store:
        """A new store in `directory` (host path, made if missing).

        Raises HakoError if it cannot be written; nothing is left then. Raises AlreadyExists if a process has it and keeps it.
        """
        try:
            store = cls(directory, _take_over(directory), {})
        except BlockingIOError as exc:
            raise AlreadyExists("a process that lives has this state", step=STEP, object=directory) from exc
        except OSError as exc:
            _remove_empty(directory)
            raise _failed(exc, directory) from exc
        try:
            store.change(lambda state: state.update(_fresh(sandbox_id, namespace)))
        except HakoError:
            store.remove()
            raise
        return store

    def change(self, edit: Callable[[dict[str, Any]], object]) -> None:
        """Apply `edit` to the state and save it. Raises HakoError if it cannot be written."""
        with self._guard:
            edit(self.state)
            self._save()

    def add_process(self, name: str, pid: int) -> None:
        """Remember a process that must not outlive the pod."""
        entry = {"name": name, "pid": pid, "start_time": start_time(pid)}
        self.change(lambda state: state["processes"].append(entry))

    def _save(self) -> None:
        import json  # not for `delete`, which only reads

        path = os.path.join(self.directory, STATE_FILE)
        try:
            write_atomically(path, json.dumps(self.state).encode())
        except OSError as exc:
            raise _failed(exc, path) from exc

    def remove(self) -> None:
        """The pod is gone: remove the files and the directory, if nothing else is left in it."""
        for name in (STATE_FILE, STATE_FILE + NEW, LOCK_FILE):
            _unlink(os.path.join(self.directory, name))
        _remove_empty(self.directory)
        self.close()

    def close(self) -> None:
        """Give up the lock; the files stay."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _fresh(sandbox_id: str, namespace: str) -> dict[str, Any]:
    """The state of a pod that has nothing yet."""
    return {
        "version": VERSION,
        "sandbox_id": sandbox_id,
        "namespace": namespace,
        "pid": os.getpid(),
        "start_time": start_time(os.getpid()),
        "processes": [],
        "cgroups": [],
        "cgroup_parents": [],
        "paths": [],
        "network": None,
        "containers": {},
    }


def _failed(exc: OSError, path: str) -> HakoError:
    return HakoError(exc.strerror or str(exc), step=STEP, object=path)


def _remove_empty(directory: str) -> None:
    """The pod's directory and the namespace's."""
    for path in (directory, os.path.dirname(directory)):
        try:
            os.rmdir(path)
        except OSError:  # not empty: another pod of the namespace, or something that must be looked at
            break


def _take_over(directory: str) -> int:
    """The lock of a directory that is made if it is missing, once a predecessor has gone. Raises OSError."""
    deadline = time.monotonic() + PREDECESSOR
    while True:
        try:
            os.makedirs(directory, mode=0o711, exist_ok=True)
            return take_lock(directory, os.O_CREAT)
        except (BlockingIOError, FileNotFoundError):  # it is there still, or has just removed the directory
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def take_lock(directory: str, flags: int = 0) -> int:
    """A descriptor that holds the pod's lock. Raises BlockingIOError if somebody else has it, FileNotFoundError if there is
    none and `flags` has not O_CREAT.
    """
    path = os.path.join(directory, LOCK_FILE)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # of a pod that was removed meanwhile


def is_alive(directory: str) -> bool:
    """Whether the pod's process lives."""
    try:
        os.close(take_lock(directory))
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def read(directory: str) -> dict[str, Any] | None:
    """The state on disk, None if there is none (or only the beginning of one)."""
    from shim import light

    try:
        with open(os.path.join(directory, STATE_FILE), "rb") as stream:
            state = light.loads(stream.read())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and state.get("version") == VERSION else None


def write_atomically(path: str, data: bytes) -> None:
    """Replace a file so that the end of this process leaves the old or the new content, never a mixture. Raises OSError; the
    old content is there then.
    """
    temporary = path + NEW
    try:
        with open(temporary, "wb", opener=_private) as stream:
            stream.write(data)
        os.rename(temporary, path)
    except OSError:
        _unlink(temporary)
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
