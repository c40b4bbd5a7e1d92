"""Templates on disk: saved VMs from which pods start, each under the hash of what it depends on.

    <cache>/template/KEY/memory      the guest's RAM, a sparse file: pages of zeros are holes
                        /state       the devices' state, QEMU's migration stream
                        /about.json  what it was made of, for `hako factory status`
    <cache>/template/KEY.failed      why it could not be made, or did not start
    <cache>/template/KEY.lock        held by whoever makes it

Owns: that directory, copying the RAM for a clone, what is stale or too much. Must not know: QEMU, pods. Called by
builder.py (find, copy), templatebuild.py (add, sweep) and `hako factory`.

Each clone gets a copy of the RAM: the vhost-user daemons map the guest's memory as QEMU does, so it must be
shared with them and with nobody else. (The copy counts against the cgroup of the pod's process, who makes it, and not
against the pod's, in which QEMU is.) Copied are the pages that are not zero, 30 to 50 MiB, at 2.5 GB/s while
QEMU starts. Measured: from a file in the page cache of a disk as fast as from tmpfs (22 ms of CPU for 54 MiB,
19 ms for 38), so templates are on disk, survive a reboot and cost no memory.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from shim import paths
from shim.errors import HakoError
from shim.sandbox import templatekey
from shim.sandbox.templatekey import Identity

MEMORY, STATE, ABOUT = "memory", "state", "about.json"
FAILED, LOCK, DRAFT = ".failed", ".lock", ".draft"
RETRY_SECONDS = 600.0  # until a template that could not be made is tried again
BLOCK = 1 << 20
PAGE = 4096


class Template(NamedTuple):
    """A saved VM. `directory` is a host path."""

    key: str
    directory: str

    def about(self) -> dict[str, Any]:
        """What `add` was given; {} if that cannot be read."""
        try:
            with open(os.path.join(self.directory, ABOUT), encoding="utf-8") as stream:
                found: dict[str, Any] = json.load(stream)
                return found
        except (OSError, ValueError):
            return {}

    def size(self) -> int:
        """Bytes that it takes on disk."""
        names = (MEMORY, STATE, ABOUT)
        return sum(os.stat(os.path.join(self.directory, name)).st_blocks * 512 for name in names)

    def used(self) -> float:
        """When a pod last started from it, seconds since the epoch."""
        return os.stat(self.directory).st_mtime


class Copy:
    """What a clone starts from: its own RAM, which is being filled in a thread, and the devices' state.

    `state_fd` stays ours until `close`, `memory_fd` until `free`.
    """

    def __init__(self, template: Template) -> None:
        try:
            source = os.open(os.path.join(template.directory, MEMORY), os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.state_fd = os.open(os.path.join(template.directory, STATE), os.O_RDONLY | os.O_CLOEXEC)
                self.memory_fd = os.memfd_create("hako-ram", os.MFD_CLOEXEC)
                os.ftruncate(self.memory_fd, os.fstat(source).st_size)
                os.utime(template.directory)
            except BaseException:
                os.close(source)
                raise
        except OSError as exc:
            raise _unusable(template, exc) from exc
        self._template = template
        self._source = source
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._fill, name="hako-copy", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            for begin, end in extents(self._source):
                _send(self._source, self.memory_fd, begin, end)
        except OSError as exc:
            self._error = exc

    def finish(self) -> None:
        """Wait until all is copied. Raises HakoError if it could not be."""
        self._thread.join()
        if self._error is not None:
            raise _unusable(self._template, self._error)

    def close(self) -> None:
        """The VMM has what it needs. Idempotent."""
        self._thread.join()
        for name in ("_source", "state_fd"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)

    def free(self) -> None:
        """Let go of the memory, after the VMM: to free its pages takes 5 ms, which nobody waits for then. Idempotent."""
        fd, self.memory_fd = self.memory_fd, -1
        if fd >= 0:
            threading.Thread(target=os.close, args=(fd,), name="hako-free", daemon=True).start()


def _unusable(template: Template, exc: OSError) -> HakoError:
    return HakoError(exc.strerror or str(exc), step="copy the template", object=template.directory)


def extents(fd: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of what a sparse file has."""
    end = 0
    while True:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        yield begin, end


def _send(source: int, target: int, begin: int, end: int) -> None:
    os.lseek(target, begin, os.SEEK_SET)
    while begin < end:
        count = os.sendfile(target, source, begin, end - begin)
        if not count:
            raise OSError(errno.EIO, "the file is shorter than it was")
        begin += count


def root() -> str:
    """Directory of all templates."""
    return paths.cache_dir("template")


def find(key: str) -> Template | None:
    """The template with that key, if it is there."""
    found = Template(key, os.path.join(root(), key))
    return found if os.path.exists(os.path.join(found.directory, ABOUT)) else None


def every() -> list[Template]:
    """All of them, the one used last first."""
    try:
        names = os.listdir(root())
    except FileNotFoundError:
        return []
    found = [template for name in names if "." not in name and (template := find(name)) is not None]
    return sorted(found, key=Template.used, reverse=True)


# Making


@contextmanager
def workplace(key: str) -> Iterator[str]:
    """An empty directory (host path) for the making of this template; the caller holds its lock. Raises OSError."""
    draft = os.path.join(root(), key + DRAFT)
    _erase(draft)
    os.mkdir(draft, 0o700)
    try:
        yield draft
    finally:
        _erase(draft)


@contextmanager
def locked(key: str, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of whoever makes this template; False if another does and `wait` is not asked for."""
    os.makedirs(root(), mode=0o700, exist_ok=True)
    fd = os.open(os.path.join(root(), key + LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


def add(identity: Identity, memory_fd: int, state_fd: int, about: dict[str, Any]) -> Template:
    """Keep a VM that was just saved; it is there as a whole or not at all. The caller holds its lock.

    Raises OSError.
    """
    draft = os.path.join(root(), identity.key + DRAFT)
    _erase(draft)
    os.mkdir(draft, 0o700)
    try:
        _write_sparse(os.path.join(draft, MEMORY), memory_fd)
        _write_sparse(os.path.join(draft, STATE), state_fd)
        with open(os.path.join(draft, ABOUT), "w", encoding="utf-8") as stream:
            json.dump(about | {"inputs": identity.inputs}, stream, indent=1)
        _erase(os.path.join(root(), identity.key))  # there, but no template: not whole
        os.rename(draft, os.path.join(root(), identity.key))
    except BaseException:
        _erase(draft)
        raise
    forgive(identity.key)
    return Template(identity.key, os.path.join(root(), identity.key))


def _write_sparse(path: str, source: int) -> None:
    """A copy of a file, read-only for everybody, on disk before it is used; pages of zeros become holes."""
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o400)) as target:
        size = os.fstat(source).st_size
        target.truncate(size)
        for begin, end in extents(source):
            for at in range(begin, end, BLOCK):
                _write_pages(target.fileno(), os.pread(source, min(BLOCK, end - at), at), at)
        target.flush()
        os.fsync(target.fileno())


def _write_pages(target: int, data: bytes, at: int) -> None:
    """Write runs of pages that are not zero."""
    zero = bytes(PAGE)
    begin = -1
    for offset in range(0, len(data) + PAGE, PAGE):
        page = data[offset : offset + PAGE]
        filled = bool(page) and page != zero[: len(page)]
        if filled and begin < 0:
            begin = offset
        elif not filled and begin >= 0:
            os.pwrite(target, data[begin:offset], at + begin)
            begin = -1


# Failures


def reject(key: str, reason: str) -> None:
    """Nobody shall start from this template, nor make it again for a while."""
    os.makedirs(root(), mode=0o700, exist_ok=True)
    with open(os.path.join(root(), key + FAILED), "w", encoding="utf-8") as stream:
        stream.write(reason)
    _erase(os.path.join(root(), key))


def forgive(key: str) -> None:
    """It may be made again."""
    try:
        os.unlink(os.path.join(root(), key + FAILED))
    except FileNotFoundError:
        pass


def failure(key: str) -> str:
    """Why this template was rejected in the last ten minutes; "" if it was not."""
    path = os.path.join(root(), key + FAILED)
    try:
        if time.time() - os.stat(path).st_mtime > RETRY_SECONDS:
            return ""
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read() or "unknown"
    except OSError:
        return ""


# Taking away


def is_stale(template: Template) -> bool:
    """Whether a file that it was made of has changed or gone, so that no pod can start from it any more."""
    files = template.about().get("files")
    if not isinstance(files, dict):
        return True
    return not all(templatekey.is_same(path, made_of) for path, made_of in files.items())


def sweep(keep: int) -> list[str]:
    """Remove stale templates, all but the `keep` that were used last, and what dead makers left; their keys.

    A pod that is just starting from one has its files open, or starts cold.
    """
    found = every()
    fresh = [template for template in found if not is_stale(template)]
    going = [template for template in found if template not in fresh] + fresh[max(1, keep) :]
    for template in going:
        _erase(template.directory)
    _remove_drafts()
    return [template.key for template in going]


def _remove_drafts() -> None:
    for name in os.listdir(root()):
        if name.endswith(DRAFT):
            with locked(name.removesuffix(DRAFT), wait=False) as ours:
                if ours:
                    _erase(os.path.join(root(), name))


def destroy() -> int:
    """Remove everything; how many templates there were."""
    count = len(every())
    _erase(root())
    return count


def _erase(directory: str) -> None:
    """Take a directory away, as far as it is there. A start needs none of this, nor what shutil loads (2 ms)."""
    from shutil import rmtree

    rmtree(directory, ignore_errors=True)
