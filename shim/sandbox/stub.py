"""The host process that stands for a container: engines look at its pid, its cgroup and its namespaces.

Owns: its start (in the container's cgroup, in the pod's network namespace) and its end. Must not know: the
container. It reads what nobody writes: its pipe's end is its own, so that it dies with the pod process, and container.py
ends it when the container ends. The other way round, a stub that somebody kills takes the container with it.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from agent.linux import syscalls
from shim import process
from shim.errors import HakoError
from shim.process import Child, Confinement

STUB_ARGV = ("/bin/cat",)


class Stub(NamedTuple):
    """`keeps`: our end of what it reads, open as long as it shall be."""

    child: Child
    keeps: int

    def end(self) -> None:
        """End and reap it; once."""
        os.close(self.keeps)
        self.child.terminate(0)
        self.child.close()


def spawn(cgroup_dirs: tuple[str, ...], netns: str | None) -> Stub:
    """A stub in these cgroup directories and in the network namespace at this host path. Raises HakoError."""
    confine = Confinement(cgroup_dirs=cgroup_dirs, netns=netns, no_new_privs=False, die_with_parent=False)
    reads, keeps = os.pipe2(os.O_CLOEXEC)
    try:
        return Stub(process.spawn(STUB_ARGV, confine=confine, stdin=reads), keeps)
    except BaseException:
        os.close(keeps)
        raise
    finally:
        os.close(reads)


def await_program(child: Child, deadline: float = 10.0) -> None:
    """Wait until the stub is what it will be: its way there (cgroups, namespace) is walked by other programs.

    Hooks and engines look at /proc/PID/ns/net as soon as they know the pid. Raises HakoError if it never
    gets there.
    """
    import time

    program = os.path.realpath(STUB_ARGV[0])
    until = time.monotonic() + deadline
    while _program(child.pid) != program:
        if child.wait(0.001) is not None:
            raise child.failure()
        if time.monotonic() > until:
            raise HakoError("the stub process did not start", step="create", object=str(child.pid))


def _program(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def new_netns() -> int:
    """A descriptor of a new, empty network namespace; /proc/self/fd/N is its path as long as it is open."""
    opened: list[int | OSError] = []

    def work() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)  # of this thread alone, which ends with the function
            opened.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as exc:
            opened.append(exc)

    thread = threading.Thread(target=work, name="hako-netns")
    thread.start()
    thread.join()
    result = opened[0]
    if isinstance(result, OSError):
        raise HakoError(result.strerror or str(result), step="create a network namespace")
    return result
