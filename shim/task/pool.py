"""The pool: VMs that were made before anybody wanted them, each in a process of its own that waits for a pod.

Owns: how many there are, when one is made, which job gets one, when all of them go. Must not know: how a VM is made
(shim/sandbox/spare.py), what the processes do (waiting.py). Part of the forkserver, in whose only thread it runs.

One is made at a time, and none while a pod is starting or has just started. None is made if the host's available memory
would fall below a tenth of the total by it, and all go when tasks are stalled for want of memory (PSI, where the kernel has
it). Nothing is looked at by a clock: what is missing is made when something happens; only starts, failures and shortage are
waited out.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socket, socketpair
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from agent.linux import syscalls
from shim import answers
from shim import config as configuration
from shim.errors import ConfigError
from shim.sandbox import spare as spares
from shim.sandbox import vmspec
from shim.task import waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.config import Config

PRESSURE = "/proc/pressure/memory"
# Some task was stalled for 200 ms of 2 s (kernel: Documentation/accounting/psi.rst; shorter windows need CAP_SYS_RESOURCE)
TRIGGER = b"some 200000 2000000\0"
CALM = 60.0  # seconds without pressure until the pool is filled again
STARTING = 5.0  # seconds that a pod's start may keep the pool from being filled
LULL = 1.0  # seconds after a pod's start in which nothing is made: it has just begun to work, and the next may be coming
LULLS = 5.0  # seconds that a VM is missing before starts do not put it off any more
PAUSES = (1.0, 2.0, 5.0, 15.0, 60.0)  # seconds after the first, second ... failure in a row
CHANGES = 0x8 | 0x40 | 0x80 | 0x200  # IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_DELETE (inotify(7))


class Watch(Protocol):
    """The forkserver's loop."""

    def watch(self, thing: socket | int, action: Callable[[], None], events: int = select.POLLIN) -> None:
        """Call `action` whenever the socket or descriptor is ready; it is closed in every child."""

    def forget(self, thing: socket | int) -> None:
        """Stop, and close it."""

    def fork(self) -> int:
        """As os.fork, with everything that is watched closed in the child."""


class Source(NamedTuple):
    """What decides which configuration a process reads, and where it finds its guest."""

    config: str
    cache: str

    @classmethod
    def of(cls, config_path: str, environment: dict[str, str] | os._Environ[str]) -> Source:
        return cls(config_path or environment.get("HAKO_CONFIG", ""), environment.get("HAKO_CACHE_DIR", ""))


class Entry:
    """A process of the pool."""

    def __init__(self, pid: int, sock: socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.sock = sock
        self.ready = False
        self.leaving = False

    def hand_over(self, job: dict[str, Any], listener: socket, caller: socket) -> bool:
        """Give it the job; False if it has just ended."""
        fds = struct.pack("2i", listener.fileno(), caller.fileno())
        try:
            self.sock.sendmsg([json.dumps(job).encode()], [(SOL_SOCKET, SCM_RIGHTS, fds)])
        except OSError:
            return False
        return True


class Pool:
    """See the module."""

    def __init__(self, loop: Watch, make: waiting.Make = spares.make, pressure: str = PRESSURE) -> None:
        self._loop = loop
        self._make = make
        self._source = Source.of("", os.environ)
        self._files: list[str] = []
        self._config: Config | None = None
        self._pressure_file = pressure
        self._pressure: int | None = None
        self._changes: int | None = None
        self._entries: dict[int, Entry] = {}
        self._starting: dict[int, float] = {}
        self._not_before = 0.0
        self._calm_from = 0.0
        self._short_since = 0.0
        self._failures = 0
        self._counts = dict.fromkeys(("hits", "misses", "made", "lost", "drained"), 0)
        self._reason = ""
        self.size = 0

    # What is wanted

    def open(self) -> None:
        """Begin, if the configuration asks for a pool; after `end` again."""
        self._files = []
        self.reload()

    def reload(self) -> None:
        """Look whether the configuration has changed; then nothing that was made for the old one is kept."""
        files = [answers.identity(path) for path in configuration.files(self._source.config or None)]
        if files == self._files:
            return
        self._files, config = files, None
        try:
            config = configuration.load(self._source.config or None)
        except ConfigError as exc:
            self._reason = str(exc)
        if config != self._config:
            self.drain("the configuration has changed")
        self._config = config
        self._resize()

    def _resize(self) -> None:
        config = self._config
        refusal = vmspec.no_template(config) if config is not None else self._reason
        self.size = config.factory.pool if config is not None and config.runtime.forkserver and not refusal else 0
        self._reason, self._failures, self._not_before = refusal, 0, 0.0
        if self.size:
            spares.sweep()
            self._watch_host()

    def _watch_host(self) -> None:
        if self._pressure is None:
            self._pressure = _trigger(self._pressure_file)
            if self._pressure is not None:
                self._loop.watch(self._pressure, self._pressed, select.POLLPRI)
        if self._changes is None:
            self._changes = _watched({os.path.dirname(path) for path in configuration.files(self._source.config or None)})
            self._loop.watch(self._changes, self._changed)

    def _changed(self) -> None:
        os.read(self._changes or 0, 1 << 16)
        self.reload()

    def _pressed(self) -> None:
        self.drain("memory is short")
        self._not_before = time.monotonic() + CALM

    def end(self) -> None:
        """No pool any more, until `open`."""
        self.drain("it was ended")
        self.size = 0

    def drain(self, reason: str) -> None:
        """All that wait go; what is missing then is made when it is time."""
        for entry in self._waiting():
            entry.leaving = True
            self._loop.forget(entry.sock)
            self._counts["drained"] += 1
            self._reason = reason

    # What is there

    @property
    def busy(self) -> bool:
        """Whether there is something to be done here, now or later."""
        return self.size > 0 or bool(self._entries)

    def status(self) -> dict[str, Any]:
        """For `hako factory status`."""
        ready = [entry.pid for entry in self._waiting() if entry.ready]
        making = [entry.pid for entry in self._waiting() if not entry.ready]
        return {"size": self.size, "ready": ready, "making": making, "reason": self._reason, **self._counts}

    def _waiting(self) -> list[Entry]:
        return [entry for entry in self._entries.values() if not entry.leaving]

    # Who gets one

    def take(self, job: dict[str, Any], listener: socket, caller: socket) -> Entry | None:
        """The process that has got the job; None: it is to be forked. The entry's pidfd is the caller's then."""
        if not self.size or Source.of(job["options"][0], job["environment"]) != self._source:
            return None
        self.reload()
        waiting = self._waiting()
        for entry in waiting:
            if entry.ready and entry.hand_over(job, listener, caller):
                if len(waiting) == self.size:
                    self._short_since = time.monotonic()
                del self._entries[entry.pidfd]
                self.starting(entry.sock)
                self._counts["hits"] += 1
                return entry
        self._counts["misses"] += self.size > 0
        return None

    def starting(self, token: socket) -> None:
        """A pod is starting until the other end of `token` is closed."""
        fd = token.fileno()
        self._starting[fd] = time.monotonic() + STARTING

        def started() -> None:
            del self._starting[fd]
            self._loop.forget(token)
            self._calm_from = min(time.monotonic() + LULL, self._short_since + LULLS)

        self._loop.watch(token, started)

    # Making

    def tend(self) -> float | None:
        """Make one if one is missing and nothing is against it; seconds until that is to be asked again, None: no matter."""
        waiting = self._waiting()
        if len(waiting) >= self.size or not all(entry.ready for entry in waiting) or self._config is None:
            return None
        now = time.monotonic()
        wait = max([self._not_before - now, self._calm_from - now, *(until - now for until in self._starting.values())])
        if wait > 0:
            return wait
        if not has_room(self._config.hypervisor.default_memory):
            self._reason = "too little memory is available"
            return None
        self._begin(self._config)
        return None

    def _begin(self, config: Config) -> None:
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        pid = self._loop.fork()
        if pid == 0:
            ours.close()
            waiting.main(theirs, config, self._make)
        theirs.close()
        entry = Entry(pid, ours)
        self._entries[entry.pidfd] = entry
        self._loop.watch(entry.sock, lambda: self._told(entry))
        self._loop.watch(entry.pidfd, lambda: self._ended(entry))

    def _told(self, entry: Entry) -> None:
        """It is ready, says why not, or hangs up."""
        try:
            message = entry.sock.recv(4096)
        except OSError:
            message = b""
        if message == waiting.READY:
            entry.ready = True
            self._failures, self._reason = 0, ""
            self._counts["made"] += 1
            return
        entry.leaving = True
        self._loop.forget(entry.sock)
        self._counts["lost"] += 1
        if message:
            self._reason = message.decode("utf-8", "replace")
        if not entry.ready:
            self._not_before = time.monotonic() + PAUSES[min(self._failures, len(PAUSES) - 1)]
            self._failures += 1

    def _ended(self, entry: Entry) -> None:
        if not entry.leaving:
            self._told(entry)  # its last words, if they were not read yet
            if not entry.leaving:
                return
        del self._entries[entry.pidfd]
        os.waitpid(entry.pid, 0)
        self._loop.forget(entry.pidfd)
        spares.sweep()


def has_room(mebibytes: int, meminfo: str = "/proc/meminfo") -> bool:
    """Whether a tenth of the host's memory would still be available if a VM took all of its own."""
    with open(meminfo, encoding="ascii") as stream:
        found = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in stream)}
    return found["MemAvailable"] - (mebibytes << 10) >= found["MemTotal"] // 10


def _trigger(path: str) -> int | None:
    """A descriptor with POLLPRI when memory is short; None where the kernel does not tell."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        os.write(fd, TRIGGER)
    except OSError:
        os.close(fd)
        return None
    return fd


def _watched(directories: set[str]) -> int:
    """An inotify descriptor that tells of changed files; a directory that is not there is left out."""
    fd = syscalls.inotify_init()
    for directory in directories:
        try:
            syscalls.inotify_add_watch(fd, directory, CHANGES)
        except OSError:
            pass
    return fd
