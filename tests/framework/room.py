"""Namespaces of a test's own in which hako runs: nothing that is started in there can hide, or outlive the test.

    with Room(directory) as room:
        before = room.inventory()
        subprocess.run([*room.enter, "hako", "run", ...])
        assert room.inventory() == before

Owns: pid, network, mount and cgroup namespace, and what is in them: processes, mounts, links, packet filter tables,
sockets, cgroups, files. Must not know: hako. Pids are those of the room; `kill` takes them. The directory has the same
path inside and outside; /run and /dev/shm are the room's own.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

CGROUPS = Path("/sys/fs/cgroup")
# The shell is the room's init: dash reaps whatever it is the parent of while it waits for `cat`.
INIT = """
while read -r _ _ _ _ point _; do mount --make-private "$point" 2>/dev/null; done < /proc/self/mountinfo
set -e
mount -t proc proc /proc
umount -R -l /sys/fs/cgroup
{cgroups}
mount -t tmpfs -o mode=755 none /run
mount -t tmpfs -o mode=1777 none /dev/shm
ip link set lo up
echo up
cat
exit 0
"""
UNSHARE = "unshare --pid --net --mount --cgroup --fork --kill-child --propagation=unchanged"


class Room:
    """See the module. `files`: further directories whose contents must not change."""

    def __init__(self, name: str, files: Iterable[Path] = ()) -> None:
        self._files = tuple(files)
        self.cgroups = [root / f"hako-test-{name}" for root in _hierarchies()]
        for directory in self.cgroups:
            _make_cgroup(directory)
        join = "".join(f"echo $$ > {directory}/cgroup.procs; " for directory in self.cgroups)
        words = ["/bin/sh", "-ec", f'{join} exec {UNSHARE} /bin/sh -c "$1"', "sh", INIT.format(cgroups=_remounts())]
        pipe = subprocess.PIPE
        self._holder = subprocess.Popen(words, stdin=pipe, stdout=pipe, cwd="/")
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"up\n":
            self.close()
            raise AssertionError("the room's namespaces cannot be made")
        self._init = int(Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text())
        proc = f"/proc/{self._init}"
        self.proc = Path(f"{proc}/root/proc")
        spaces = ["--pid", "--net", "--mount", "--cgroup", f"--root={proc}/root", f"--wd={proc}/root"]
        # With nsdelegate, as systemd mounts version 2, who enters the namespace can only move what is in its cgroups.
        unified = [root / f"hako-test-{name}/cgroup.procs" for root, mount in _hierarchies().items() if "cgroup2" in mount]
        join = "".join(f"echo $$ > {path}; " for path in unified)
        nsenter = ["/usr/bin/nsenter", f"--target={self._init}", *spaces, "--"]
        self.enter = ["/bin/sh", "-ec", f'{join} exec "$@"', "sh", *nsenter]

    def run(self, *words: str) -> str:
        """A command's output."""
        return subprocess.run([*self.enter, *words], capture_output=True, text=True, timeout=60, check=True).stdout

    def processes(self) -> dict[int, str]:
        """Pid -> command line of everything but the room's init."""
        found = {}
        for entry in self.proc.iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes() or b"(" + (entry / "comm").read_bytes().strip() + b")"
                except OSError:  # it has just ended
                    continue
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
        return {pid: command for pid, command in found.items() if pid != 1 and command != "cat"}

    def kill(self, pid: int, number: int = 9) -> None:
        """Send a signal to a process of the room; one that has ended is fine."""
        subprocess.run([*self.enter, "/bin/kill", f"-{number}", str(pid)], capture_output=True, timeout=60, check=False)

    def inventory(self) -> set[str]:
        """Everything that is there now, in words."""
        found = {f"process {pid}: {command}" for pid, command in self.processes().items() if "nft list tables" not in command}
        found |= {f"mount {line.split()[4]}" for line in self._lines("mountinfo")}
        found |= {f"link {line.partition(':')[0].strip()}" for line in self._lines("net/dev")[2:]}
        found |= {f"socket {line.split()[7]}" for line in self._lines("net/unix") if len(line.split()) > 7}
        found |= {f"nft {line}" for line in self.run("nft", "list", "tables").splitlines()}
        found |= {f"cgroup {path}" for top in self.cgroups for path in _below(top, directories_only=True)}
        places = [*self._files, self.proc.parent / "run", self.proc.parent / "dev/shm"]
        return found | {f"file {path}" for place in places for path in _below(place)}

    def left(self, before: set[str], timeout: float = 10) -> list[str]:
        """What is there and was not `before`; something that goes within `timeout` seconds is not left."""
        deadline = time.monotonic() + timeout
        while (more := self.inventory() - before) and time.monotonic() < deadline:
            time.sleep(0.1)
        return sorted(more)

    def close(self) -> None:
        """End whatever is in it, and the room. Repeatable."""
        if self._holder.stdin is not None:
            self._holder.stdin.close()
        try:
            self._holder.wait(20)  # its init has ended, and with it every process
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
        for top in self.cgroups:
            for path in sorted((*_below(top, directories_only=True), top), reverse=True):
                _remove_cgroup(path)

    def __enter__(self) -> Room:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _lines(self, name: str) -> list[str]:
        return Path(f"/proc/{self._init}/{name}").read_text(errors="replace").splitlines()


def _hierarchies() -> dict[Path, str]:
    """Where cgroup file systems are mounted -> the `mount` that does the same inside a cgroup namespace."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        point = head.split(" ")[4]
        if kind in ("cgroup", "cgroup2") and point.startswith(str(CGROUPS)):
            names = ",".join(word for word in options.strip().split(",") if word not in ("rw", "ro", "xattr"))
            found[Path(point)] = f"mount -t {kind} {f'-o {names} ' if kind == 'cgroup' else ''}none {point}"
    return found


def _remounts() -> str:
    """Shell commands for the same layout, each hierarchy from the room's own cgroup on."""
    mounts = _hierarchies()
    if CGROUPS in mounts:
        return mounts[CGROUPS]
    lines = [f"mount -t tmpfs -o mode=755 none {CGROUPS}"]
    for point, command in mounts.items():
        lines += [f"mkdir {point}", command]
    return "\n".join(lines)


def _make_cgroup(directory: Path) -> None:
    directory.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):  # version 1: a new one has none, and takes no process then
        if (directory / name).exists() and not (directory / name).read_text().strip():
            (directory / name).write_text((directory.parent / name).read_text())


def _remove_cgroup(directory: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            directory.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _below(top: Path, *, directories_only: bool = False) -> Iterable[Path]:
    """Everything under `top`; links are not followed."""
    for directory, names, files in os.walk(top):
        yield from (Path(directory) / name for name in (names if directories_only else [*names, *files]))
