"""Cgroup v2 of a container: limits, devices, freezing, killing, statistics, OOM notices.

Owns: a container's cgroup directory from creation to removal. Knows nothing of containers' states. Called
by agent.container and agent.sandbox. Conversions are in resources.py and devices.py, usage in stats.py, the
file system in agent/linux/cgroupfs.py.

The agent itself lives in a leaf of its own (agent/init.py), so that controllers can be passed down from the
root. A container with a cgroup namespace sees its cgroup as the root and may make children below;
everything here that concerns processes includes them.
"""

from __future__ import annotations

import errno
import os
import select

from agent.cgroups import devices, resources, stats
from agent.errors import InvalidSpec, StepError, step_error
from agent.linux import bpf, cgroupfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterable

    from agent.api import agent_pb2, oci_pb2
    from agent.linux.loop import Loop

ROOT = "/sys/fs/cgroup"
FREEZE_SECONDS = 2.0
REMOVE_SECONDS = 5.0
# kernel/cgroup: what a delegatee may write; /sys/kernel/cgroup/delegate lists it, these are there since
# 4.15.
_DELEGATED = (
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.subtree_control",
    "memory.oom.group",
    "memory.reclaim",
)


def guest_path(cgroups_path: str, container_id: str) -> str:
    """OCI's cgroupsPath as a path below the cgroup root, starting with "/".

    Empty means "/hako/ID". The systemd form "slice:prefix:name" becomes the directories that systemd would
    make, since the guest has none. Raises InvalidSpec.
    """
    if not cgroups_path:
        return f"/hako/{container_id}"
    if cgroups_path.count(":") == 2 and "/" not in cgroups_path:
        return _systemd_path(cgroups_path)
    parts = [part for part in cgroups_path.split("/") if part not in ("", ".")]
    if ".." in parts or not parts or "\0" in cgroups_path:
        raise InvalidSpec("linux.cgroupsPath", f"{cgroups_path!r} is not a path below the cgroup root")
    return "/" + "/".join(parts)


def _systemd_path(cgroups_path: str) -> str:
    slice_name, prefix, name = cgroups_path.split(":")
    leaf = name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    if not name or leaf in (".", ".."):
        raise InvalidSpec("linux.cgroupsPath", f"{cgroups_path!r} names no unit")
    stem = (slice_name or "system.slice").removesuffix(".slice")
    words = [] if stem in ("-", "") else stem.split("-")
    slices = ["-".join(words[: count + 1]) + ".slice" for count in range(len(words))]
    return "/" + "/".join([*slices, leaf])


class Cgroup:
    """One container's cgroup. Precondition of all but create(): it was created and not removed."""

    __slots__ = ("_code", "_oom_kills", "_oom_watch", "_program", "directory", "path", "root")

    def __init__(self, path_in_guest: str, root: str = ROOT) -> None:
        self.path = path_in_guest
        self.root = root
        self.directory = root + path_in_guest
        self._program = -1
        self._code = b""
        self._oom_watch: tuple[Loop, int] | None = None
        self._oom_kills = 0

    def create(self, limits: oci_pb2.LinuxResources | None) -> None:
        """Make the cgroup, pass all controllers down to it, apply the limits; nothing is left where it
        fails.

        Raises StepError, InvalidSpec. What an earlier container left here empty is replaced.
        """
        try:
            self._make_directories()
        except OSError as error:
            raise step_error("create cgroup", error) from error
        try:
            self._write("cgroup.max.depth", str(cgroupfs.DEEPEST), "create cgroup")
            if limits is not None:
                self._apply_settings(limits)
            self._install_devices(limits.Devices if limits is not None else [])
        except BaseException:
            self._close_program()
            cgroupfs.remove_tree(self.directory, 0)
            self._prune()
            raise

    def take_over(self, limits: oci_pb2.LinuxResources | None) -> None:
        """What was created for nobody yet gets these limits, as if it had been created with them.

        Raises StepError, InvalidSpec; it is the caller's to remove then.
        """
        if limits is not None:
            self._apply_settings(limits)
        self._install_devices(limits.Devices if limits is not None else [])

    def _make_directories(self) -> None:
        here = self.root
        for part in self.path.strip("/").split("/"):
            cgroupfs.enable_controllers(here)
            here = os.path.join(here, part)
            if here == self.directory and os.path.isdir(here):
                if cgroupfs.processes(here):
                    raise OSError(errno.EEXIST, "has processes already", here)
                cgroupfs.remove_tree(here, 0)
            os.makedirs(here, mode=0o755, exist_ok=True)

    # --- limits -------------------------------------------------------------------------------------------

    def apply(self, limits: oci_pb2.LinuxResources) -> None:
        """Change limits; what `limits` does not mention stays. Raises StepError, InvalidSpec.

        An empty device list means no change, as engines leave it out of updates.
        """
        self._apply_settings(limits)
        if limits.Devices:
            self._install_devices(limits.Devices)

    def _apply_settings(self, limits: oci_pb2.LinuxResources) -> None:
        for name, value, optional in resources.settings(limits, self._current):
            try:
                cgroupfs.write(self.directory, name, value)
            except OSError as error:
                if optional and error.errno == errno.ENOENT:
                    continue
                path = os.path.join(self.directory, name)
                raise StepError(f"write {value!r} to cgroup file", error.errno or 0, path) from error

    def _current(self, name: str) -> str | None:
        return cgroupfs.read_if_there(self.directory, name)

    def _install_devices(self, rules: Iterable[oci_pb2.LinuxDeviceCgroup]) -> None:
        code = devices.program(rules)
        if code == self._code:
            return
        try:
            loaded = devices.load(code)
            try:
                self._attach(loaded)
            except OSError:
                os.close(loaded)
                raise
        except OSError as error:
            raise step_error("restrict devices", error) from error
        self._close_program()
        self._program, self._code = loaded, code

    def _attach(self, program: int) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            bpf.attach_device_program(fd, program, self._program)
        finally:
            os.close(fd)

    def delegate(self, uid: int, gid: int) -> None:
        """Let the user (guest ids) manage children of this cgroup, but not its limits. Raises StepError."""
        try:
            os.chown(self.directory, uid, gid)
            for name in _DELEGATED:
                if os.path.exists(os.path.join(self.directory, name)):
                    os.chown(os.path.join(self.directory, name), uid, gid)
        except OSError as error:
            raise step_error("delegate cgroup", error) from error

    # --- processes ----------------------------------------------------------------------------------------

    def add(self, pid: int, beside: int = 0) -> None:
        """Move a process here. Raises StepError.

        A container that has split its cgroup leaves no room for processes at the top (EBUSY); then the
        process goes where `beside` is (a pid of the container; default: any of its processes).
        """
        try:
            self._add(pid, beside)
        except OSError as error:
            raise step_error("join cgroup", error) from error

    def _add(self, pid: int, beside: int) -> None:
        try:
            cgroupfs.write(self.directory, "cgroup.procs", str(pid))
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EOPNOTSUPP):
                raise
            place = self._occupied(beside)
            if not place:
                raise
            cgroupfs.write(place, "cgroup.procs", str(pid))

    def _occupied(self, beside: int) -> str:
        """Directory of the cgroup below that holds `beside` (0: any process); "" where none does."""
        for place in cgroupfs.descendants(self.directory):
            present = cgroupfs.processes_of(place)
            if beside in present or (present and not beside):
                return place
        return ""

    def pids(self) -> list[int]:
        """Processes here and below, in the agent's pid namespace; empty when the cgroup is gone."""
        return cgroupfs.processes(self.directory)

    def freeze(self) -> None:
        """Stop all processes here and below; on failure they run on. Raises StepError."""
        self._write("cgroup.freeze", "1", "freeze")
        if not cgroupfs.await_event(self.directory, "frozen", 1, FREEZE_SECONDS):
            self.thaw()
            detail = f"processes did not stop within {FREEZE_SECONDS:g} s"
            raise StepError("freeze", errno.ETIMEDOUT, self.directory, detail)

    def thaw(self) -> None:
        """Let frozen processes go on. Raises StepError."""
        self._write("cgroup.freeze", "0", "thaw")

    def kill(self) -> None:
        """SIGKILL to every process here and below, forks in progress included. Raises StepError."""
        try:
            cgroupfs.write(self.directory, "cgroup.kill", "1")
        except FileNotFoundError:
            if os.path.isdir(self.directory):
                self._kill_one_by_one()
        except OSError as error:
            raise step_error("kill", error) from error

    def _kill_one_by_one(self) -> None:
        """Kernels before 5.14 have no cgroup.kill: freeze, so that nobody can fork, then signal each."""
        try:
            self.freeze()
        except StepError:
            pass  # whoever cannot be frozen now is killed nevertheless
        for pid in self.pids():
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        self.thaw()

    def _write(self, name: str, value: str, step: str) -> None:
        try:
            cgroupfs.write(self.directory, name, value)
        except OSError as error:
            raise step_error(step, error) from error

    # --- what happens inside ------------------------------------------------------------------------------

    def stats(self) -> agent_pb2.CgroupStats:
        """Usage and limits now, see stats.py. Raises StepError."""
        try:
            return stats.collect(self.directory)
        except OSError as error:
            raise step_error("read cgroup statistics", error) from error

    def oom_kills(self) -> int:
        """How many processes here and below the kernel has killed for want of memory."""
        events = cgroupfs.flat(cgroupfs.read_if_there(self.directory, "memory.events"))
        return events.get("oom_kill", 0)

    def watch_oom(self, loop: Loop, callback: Callable[[], None]) -> None:
        """Call `callback()` when oom_kills() has grown, until remove(). Without memory controller: never.
        """
        self._unwatch()
        try:
            fd = os.open(os.path.join(self.directory, "memory.events"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        self._oom_kills = self.oom_kills()
        self._oom_watch = (loop, fd)

        def changed(_events: int) -> None:
            if self._take_oom(fd):
                callback()

        os.pread(fd, 4096, 0)  # arms the event
        loop.add(fd, select.EPOLLPRI, changed)

    def _take_oom(self, fd: int) -> bool:
        if self._oom_watch is None or self._oom_watch[1] != fd:
            return False
        try:
            kills = cgroupfs.flat(os.pread(fd, 4096, 0).decode("ascii", "replace")).get("oom_kill", 0)
        except OSError:
            # The cgroup was removed by somebody else; its file would be ready for ever.
            self._unwatch()
            return False
        grown = kills > self._oom_kills
        self._oom_kills = kills
        return grown

    def _unwatch(self) -> None:
        if self._oom_watch is not None:
            loop, fd = self._oom_watch
            self._oom_watch = None
            loop.remove(fd)
            os.close(fd)

    def remove(self) -> None:
        """Kill what is left, remove the cgroup and those above it that are empty now. Raises StepError.

        Waits at most REMOVE_SECONDS for the killed processes to be gone. Idempotent.
        """
        self._unwatch()
        try:
            self.kill()
            cgroupfs.remove_tree(self.directory, REMOVE_SECONDS)
        except OSError as error:
            raise step_error("remove cgroup", error) from error
        finally:
            self._close_program()
        self._prune()

    def _prune(self) -> None:
        above = os.path.dirname(self.directory)
        while above.startswith(self.root + "/"):
            try:
                os.rmdir(above)
            except OSError:
                return
            above = os.path.dirname(above)

    def _close_program(self) -> None:
        if self._program >= 0:
            os.close(self._program)
            self._program, self._code = -1, b""


class NullCgroup(Cgroup):
    """The same interface without any cgroup, for tests on hosts without a usable v2 tree.

    Remembers the pids that were added, so that kill() and pids() mean something.
    """

    __slots__ = ("_added",)

    def __init__(self, path_in_guest: str = "/", root: str = "/nonexistent") -> None:
        super().__init__(path_in_guest, root)
        self._added: list[int] = []

    def create(self, limits: oci_pb2.LinuxResources | None) -> None:
        """Nothing to make."""

    def take_over(self, limits: oci_pb2.LinuxResources | None) -> None:
        """Nothing to limit."""

    def apply(self, limits: oci_pb2.LinuxResources) -> None:
        """Nothing to limit."""

    def delegate(self, uid: int, gid: int) -> None:
        """Nothing to hand over."""

    def add(self, pid: int, beside: int = 0) -> None:
        """Remember the process."""
        self._added.append(pid)

    def pids(self) -> list[int]:
        """Those added processes that are still there."""
        self._added = [pid for pid in self._added if os.path.exists(f"/proc/{pid}")]
        return list(self._added)

    def freeze(self) -> None:
        """SIGSTOP to the added processes."""
        self._signal(19)

    def thaw(self) -> None:
        """SIGCONT to the added processes."""
        self._signal(18)

    def kill(self) -> None:
        """SIGKILL to the added processes."""
        self._signal(9)

    def _signal(self, number: int) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def watch_oom(self, loop: Loop, callback: Callable[[], None]) -> None:
        """Never."""

    def remove(self) -> None:
        """Kill what is left."""
        self.kill()
