"""Cgroups on the host: where a pod's VM and a container's stub are accounted and limited. Version 1, 2 and
hybrid.

Owns: finding the hierarchies, directories from linux.cgroupsPath, making, joining, limits, removal. Must
not know: who is put into them, nor the guest's cgroups. Called by sandbox/ and task/; paths are those of
the host's cgroup file systems.

    PARENT/hako_SANDBOX     VMM, virtiofsd, vsock daemon: beside the sandbox container's cgroup, so that the
    pod's limits hold
                            them and a container's limit does not end the VM
    PARENT/CONTAINER        the container's stub, with the container's limits

Limits are written as far as the host has the controller: the guest enforces the container's own.
Directories are made even under a systemd slice ("slice:prefix:name") without asking systemd, as a scope's
directory would be called.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from shim.errors import HakoError, InvalidSpec

DEFAULT_PARENT: Final = "/hako"  # for a spec without cgroupsPath
REMOVE_DEADLINE: Final = 2.0  # seconds for a cgroup to become empty: its last process is dying
MAX_V2_WEIGHT: Final = 9999
Settings: TypeAlias = list[tuple[str, str, str]]  # (controller, file, value)


class Hierarchy(NamedTuple):
    """A mounted cgroup file system; `controllers` is empty for a named one (systemd's) and not asked for
    version 2.
    """

    mount: str
    version: int
    controllers: tuple[str, ...] = ()


def hierarchies(mountinfo: str = "/proc/self/mountinfo") -> list[Hierarchy]:
    """All cgroup file systems of this mount namespace, each once (containers' copies are mounted later)."""
    found: dict[frozenset[str], Hierarchy] = {}
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            head, _, tail = line.partition(" - ")
            kind, _, options = tail.split(" ", 2)
            mount = head.split(" ")[4]
            if kind == "cgroup2":
                found.setdefault(frozenset(["unified"]), Hierarchy(mount, 2))
            elif kind == "cgroup":
                names = frozenset(options.strip().split(",")) - {"rw", "ro", "xattr"}
                controllers = tuple(sorted(name for name in names if "=" not in name))
                found.setdefault(names, Hierarchy(mount, 1, controllers))
    return list(found.values())


def container_path(cgroups_path: str, container_id: str) -> str:
    """linux.cgroupsPath as an absolute path below a hierarchy's mount.

    Raises InvalidSpec for one that leads out.
    """
    if not cgroups_path:
        return f"{DEFAULT_PARENT}/{container_id}"
    if cgroups_path.count(":") == 2 and "/" not in cgroups_path:
        return _systemd_path(*cgroups_path.split(":"))
    path = os.path.normpath("/" + cgroups_path.lstrip("/"))
    if ".." in cgroups_path.split("/") or path == "/":
        raise InvalidSpec("linux.cgroupsPath", f"{cgroups_path!r} is not below the root")
    return path


def sandbox_path(cgroups_path: str, sandbox_id: str) -> str:
    """The cgroup of a pod's VM: beside that of its sandbox container."""
    return os.path.join(os.path.dirname(container_path(cgroups_path, sandbox_id)), f"hako_{sandbox_id}")


def _systemd_path(slice_name: str, prefix: str, name: str) -> str:
    """`a-b.slice:p:n` is /a.slice/a-b.slice/p-n.scope; an empty slice is system.slice (systemd.slice(5))."""
    stem = (slice_name or "system.slice").removesuffix(".slice")
    parts = [] if stem == "-" else stem.split("-")
    if not name or not all(parts):
        raise InvalidSpec("linux.cgroupsPath", f"{slice_name}:{prefix}:{name} is not slice:prefix:name")
    slices = ["-".join(parts[: end + 1]) + ".slice" for end in range(len(parts))]
    unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    return "/" + "/".join([*slices, unit])


class Cgroup:
    """One cgroup in every hierarchy. `dirs` has its directory in each; it need not exist before `create`."""

    def __init__(self, path: str, found: list[Hierarchy] | None = None) -> None:
        self.path = path
        self._hierarchies = hierarchies() if found is None else found
        self.dirs = [item.mount.rstrip("/") + path for item in self._hierarchies]
        self._made: list[str] = []

    @classmethod
    def for_sandbox(cls, cgroups_path: str, sandbox_id: str) -> Cgroup:
        """Where the VM and its daemons go."""
        return cls(sandbox_path(cgroups_path, sandbox_id))

    @classmethod
    def for_container(cls, cgroups_path: str, container_id: str) -> Cgroup:
        """Where a container's stub goes."""
        return cls(container_path(cgroups_path, container_id))

    def create(self) -> None:
        """Make the directories that are missing, parents too. Raises HakoError; nothing stays then."""
        try:
            for hierarchy, directory in zip(self._hierarchies, self.dirs, strict=True):
                self._make(hierarchy, directory)
        except OSError as exc:
            self.remove()
            raise HakoError(
                exc.strerror or str(exc), step="make a cgroup", object=exc.filename or ""
            ) from exc

    def _make(self, hierarchy: Hierarchy, directory: str) -> None:
        for level in _levels(hierarchy.mount, directory):
            if hierarchy.version == 2:
                _enable_controllers(os.path.dirname(level))
            try:
                os.mkdir(level, 0o755)
                self._made.append(level)
            except FileExistsError:
                pass
            if "cpuset" in hierarchy.controllers:
                _inherit_cpuset(level)

    def missing_parents(self) -> list[str]:
        """The parents that `create` would have to make now, the deepest first."""
        levels = [level for hierarchy, directory in zip(self._hierarchies, self.dirs, strict=True)
                  for level in _levels(hierarchy.mount, directory) if level != directory]  # fmt: skip
        return [level for level in reversed(levels) if not os.path.isdir(level)]

    @property
    def _parents(self) -> list[str]:
        """The parents that `create` had to make, the deepest first."""
        return [directory for directory in reversed(self._made) if directory not in self.dirs]

    def add(self, pid: int) -> None:
        """Put a process in, in every hierarchy. Raises HakoError."""
        for directory in self.dirs:
            try:
                _write(os.path.join(directory, "cgroup.procs"), str(pid))
            except OSError as exc:
                raise HakoError(exc.strerror or str(exc), step="join a cgroup", object=directory) from exc

    def apply(self, resources: Mapping[str, Any]) -> list[str]:
        """Write the limits of linux.resources (JSON names). Returns what could not be set, in words."""
        problems: list[str] = []
        for hierarchy, directory in zip(self._hierarchies, self.dirs, strict=True):
            if hierarchy.version == 2:
                settings = settings_v2(resources)
            else:
                settings = [item for item in settings_v1(resources) if item[0] in hierarchy.controllers]
            problems += _set_all(directory, settings, alone=len(self._hierarchies) == 1)
        return problems

    def remove(self) -> None:
        """Take away the cgroup, and the parents that were made for it if they are empty. Idempotent, bounded.

        Raises HakoError if a process is still in it after two seconds.
        """
        end = time.monotonic() + REMOVE_DEADLINE
        stuck = [directory for directory in self.dirs if not _rmdir(directory, end)]
        self._made = [directory for directory in self._parents if not _rmdir(directory, 0.0)][::-1]
        if stuck:
            raise HakoError("still in use", step="remove a cgroup", object=", ".join(stuck))


def remove_empty(directories: list[str]) -> None:
    """Take away cgroups in this order, but those where somebody is still."""
    for directory in directories:
        _rmdir(directory, 0.0)


def join_everywhere(path: str, pid: int) -> None:
    """Put process `pid` into cgroup `path` of every hierarchy, made if missing. Raises HakoError."""
    cgroup = Cgroup(container_path(path, "shim"))
    cgroup.create()
    cgroup.add(pid)


def _levels(mount: str, directory: str) -> Iterator[str]:
    """The directories from below `mount` down to `directory`."""
    current = mount.rstrip("/")
    for part in directory[len(current) :].split("/"):
        if part:
            current += "/" + part
            yield current


def _enable_controllers(directory: str) -> None:
    """Let the children of a version 2 cgroup have its controllers, as far as it may (not with own
    processes).
    """
    try:
        with open(os.path.join(directory, "cgroup.controllers"), encoding="ascii") as stream:
            names = stream.read().split()
    except OSError:
        return
    for name in names:
        try:
            _write(os.path.join(directory, "cgroup.subtree_control"), f"+{name}")
        except OSError:
            pass


def _inherit_cpuset(directory: str) -> None:
    """A new version 1 cpuset has no CPUs and refuses processes: it gets its parent's."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        path = os.path.join(directory, name)
        try:
            if not _read(path):
                _write(path, _read(os.path.join(os.path.dirname(directory), name)))
        except OSError:
            pass


def settings_v1(resources: Mapping[str, Any]) -> Settings:
    """linux.resources as files of version 1, in the order of writing; pure."""
    memory, cpu, pids = (resources.get(name) or {} for name in ("memory", "cpu", "pids"))
    plan = (
        ("memory", "memory.limit_in_bytes", memory.get("limit")),
        ("memory", "memory.memsw.limit_in_bytes", memory.get("swap")),
        ("memory", "memory.soft_limit_in_bytes", memory.get("reservation")),
        ("cpu", "cpu.shares", cpu.get("shares")),
        ("cpu", "cpu.cfs_period_us", cpu.get("period")),
        ("cpu", "cpu.cfs_quota_us", cpu.get("quota")),
        ("cpu", "cpu.cfs_burst_us", cpu.get("burst")),
        ("cpuset", "cpuset.cpus", cpu.get("cpus")),
        ("cpuset", "cpuset.mems", cpu.get("mems")),
        ("pids", "pids.max", _maximum(pids.get("limit"))),
    )
    return [(name, file, str(value)) for name, file, value in plan if value not in (None, "", 0)]


def settings_v2(resources: Mapping[str, Any]) -> Settings:
    """linux.resources as files of version 2, in the order of writing; pure."""
    memory, cpu, pids = (resources.get(name) or {} for name in ("memory", "cpu", "pids"))
    plan = [
        ("memory", "memory.max", _maximum(memory.get("limit"))),
        ("memory", "memory.swap.max", _swap_max(memory)),
        ("memory", "memory.low", memory.get("reservation")),
        ("cpu", "cpu.weight", _weight(cpu.get("shares"))),
        ("cpu", "cpu.max", _cpu_max(cpu)),
        ("cpu", "cpu.max.burst", cpu.get("burst")),
        ("cpuset", "cpuset.cpus", cpu.get("cpus")),
        ("cpuset", "cpuset.mems", cpu.get("mems")),
        ("pids", "pids.max", _maximum(pids.get("limit"))),
    ]
    plan += [
        (file.partition(".")[0], file, value) for file, value in (resources.get("unified") or {}).items()
    ]
    return [(name, file, str(value)) for name, file, value in plan if value not in (None, "", 0)]


def _maximum(limit: int | None) -> str | None:
    """A limit; 0 is none given, a negative one is unlimited."""
    if not limit:
        return None
    return "max" if limit < 0 else str(limit)


def _swap_max(memory: Mapping[str, Any]) -> str | None:
    """OCI's swap is memory and swap together; version 2 counts swap alone."""
    swap, limit = memory.get("swap"), memory.get("limit")
    if not swap:
        return None
    if swap < 0:
        return "max"
    return str(max(0, swap - max(0, limit or 0)))


def _weight(shares: int | None) -> int | None:
    """2 .. 262144 shares as 1 .. 10000 (the mapping that runc and crun use)."""
    if not shares:
        return None
    return 1 + (min(max(shares, 2), 262144) - 2) * MAX_V2_WEIGHT // 262142


def _cpu_max(cpu: Mapping[str, Any]) -> str | None:
    quota, period = cpu.get("quota"), cpu.get("period")
    if not quota and not period:
        return None
    limit = "max" if not quota or quota < 0 else str(quota)
    return f"{limit} {period}" if period else limit


def _set_all(directory: str, settings: Settings, *, alone: bool) -> list[str]:
    """Write settings; those that the present ones contradict are tried again after the others.

    memory.limit_in_bytes cannot exceed memory.memsw.limit_in_bytes: which comes first depends on the
    direction. On a hybrid host (not `alone`) a file that is missing belongs to another hierarchy.
    """
    again = [item for item in settings if _set(directory, item) is not None]
    failed = [(item, reason) for item in again if (reason := _set(directory, item)) is not None]
    return [
        f"{file}={value}: {reason.strerror}"
        for (_, file, value), reason in failed
        if alone or reason.errno != errno.ENOENT
    ]


def _set(directory: str, setting: tuple[str, str, str]) -> OSError | None:
    _, file, value = setting
    if "/" in file:
        return OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    try:
        _write(os.path.join(directory, file), value)
    except OSError as exc:
        return exc
    return None


def _rmdir(directory: str, end: float) -> bool:
    """Remove an empty cgroup, waiting until `end` (monotonic) for its last process; True if it is gone."""
    return _retried(lambda: os.rmdir(directory), end)


def _retried(remove: Callable[[], None], end: float) -> bool:
    while True:
        try:
            remove()
            return True
        except FileNotFoundError:
            return True
        except OSError as exc:
            if exc.errno != errno.EBUSY or time.monotonic() > end:
                return False
        time.sleep(0.002)


def _read(path: str) -> str:
    with open(path, encoding="ascii") as stream:
        return stream.read().strip()


def _write(path: str, text: str) -> None:
    """One write(2), which is how cgroup files take a value; never creates a file."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, path) from exc
    finally:
        os.close(fd)
