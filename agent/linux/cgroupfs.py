"""Files of the cgroup v2 file system: reading, writing, waiting for their events, removing trees.

Owns: the formats (flat keyed, nested keyed, "max") and the bounded waits. Knows nothing of OCI or of
containers. A cgroup is named by its absolute directory. Called by agent/cgroups and agent/init.py.
"""

from __future__ import annotations

import errno
import os
import select
import time

UNLIMITED = (1 << 64) - 1
DEEPEST = 64
"""how far descendants() looks; agent/cgroups does not let a container nest deeper"""
_LARGEST_FILE = 1 << 20


def read(directory: str, name: str) -> str:
    """The file's text without the final newline. Raises OSError."""
    fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        size = 0
        while size < _LARGEST_FILE:
            piece = os.read(fd, 65536)
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces).decode("ascii", "replace").rstrip("\n")
    finally:
        os.close(fd)


def read_if_there(directory: str, name: str) -> str | None:
    """`read`, or None where the kernel has no such file (or the cgroup is gone)."""
    try:
        return read(directory, name)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return None
        raise


def write(directory: str, name: str, value: str) -> None:
    """Write `value` with one write(2), as the kernel's files want it. Raises OSError with the file's path.
    """
    path = os.path.join(directory, name)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def number(text: str | None) -> int:
    """A value file's number; "max" is UNLIMITED, a missing or strange file 0."""
    if text == "max":
        return UNLIMITED
    return int(text) if text is not None and text.isdigit() else 0


def flat(text: str | None) -> dict[str, int]:
    """Lines "key value" as a dictionary; other lines are skipped."""
    pairs = {}
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            pairs[key] = int(value)
    return pairs


def nested(text: str | None) -> dict[str, dict[str, int]]:
    """Lines "name key=value key=value" as dictionaries by name."""
    table: dict[str, dict[str, int]] = {}
    for line in (text or "").splitlines():
        name, *words = line.split()
        values = {}
        for word in words:
            key, _, value = word.partition("=")
            if value == "max" or value.isdigit():
                values[key] = number(value)
        table[name] = values
    return table


def enable_controllers(directory: str) -> None:
    """Pass every controller that the cgroup has on to its children; those that refuse stay off.

    The refusal of one (cpu, while a realtime process is outside of the root) must not cost the others; who
    needs the missing one learns it from its missing files.
    """
    wanted = set(read(directory, "cgroup.controllers").split())
    wanted -= set(read(directory, "cgroup.subtree_control").split())
    if not wanted:
        return
    try:
        write(directory, "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(wanted)))
    except OSError:
        for name in sorted(wanted):
            try:
                write(directory, "cgroup.subtree_control", f"+{name}")
            except OSError:
                pass


def children(directory: str) -> list[str]:
    """Directories of the cgroups directly below; none where the cgroup is gone."""
    try:
        with os.scandir(directory) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def descendants(directory: str, depth: int = 0) -> list[str]:
    """The cgroup itself and all below it, deeper ones first."""
    found = []
    if depth < DEEPEST:
        for child in children(directory):
            found.extend(descendants(child, depth + 1))
    return [*found, directory]


def processes(directory: str) -> list[int]:
    """Pids of the processes in this cgroup and all below it; those outside of our pid namespace are left
    out.
    """
    return [pid for place in descendants(directory) for pid in processes_of(place)]


def processes_of(directory: str) -> list[int]:
    """Pids of the processes in this very cgroup; none where it is gone."""
    # A threaded cgroup has no process list (EOPNOTSUPP); its processes show at the root of its threaded
    # tree.
    text = read_if_there(directory, "cgroup.procs")
    return [int(word) for word in (text or "").split() if word != "0"]


def await_event(directory: str, key: str, value: int, seconds: float) -> bool:
    """Wait until `key` in cgroup.events has `value`; False at the deadline. A removed cgroup counts as
    done.
    """
    deadline = time.monotonic() + seconds
    try:
        fd = os.open(os.path.join(directory, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        while True:
            # Reading re-arms the event, so a change between read and poll is not lost.
            if flat(os.pread(fd, 4096, 0).decode("ascii", "replace")).get(key) == value:
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not poll.poll(remaining * 1000):
                return False
    except OSError as error:
        if error.errno == errno.ENODEV:
            return True
        raise
    finally:
        os.close(fd)


def remove_tree(directory: str, seconds: float) -> None:
    """Remove the cgroup and all below it, waiting until their last processes are gone. Raises OSError.

    A process that was killed leaves its cgroup some time after; EBUSY before the deadline means just that.
    """
    deadline = time.monotonic() + seconds
    for place in descendants(directory):
        while True:
            try:
                os.rmdir(place)
            except FileNotFoundError:
                break
            except OSError as error:
                remaining = deadline - time.monotonic()
                if error.errno != errno.EBUSY or remaining <= 0:
                    raise
                if await_event(place, "populated", 0, remaining):
                    # Unpopulated and still busy: a child was made, or a dying task is in its last steps.
                    time.sleep(min(0.001, remaining))
            else:
                break
