"""A stand-in for the guest on this host: PID 1 of fresh namespaces that makes containers as the agent does.

Owns: the namespaces and a cgroup tree of a test. Needs root and busybox-static. Everything is gone when the
function returns: it is PID 1. What a test does inside is box.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from agent.linux import syscalls
from tests.framework import forked
from tests.framework.box import BUSYBOX, Guest

Result = TypeVar("Result")

need_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, mounts, device nodes")
need_busybox = pytest.mark.skipif(
    not os.path.exists(BUSYBOX), reason="needs busybox: apt install busybox-static"
)


def in_guest(function: Callable[[Guest], Result], seconds: float = 60, *, cgroups: bool = False) -> Result:
    """`function(guest)` as computed by PID 1 of fresh namespaces; its AssertionError is the caller's.

    `cgroups`: with a cgroup v2 tree of its own, without controllers where the host's are all in v1.
    """
    directory = Path(tempfile.mkdtemp(prefix="hako-guest-"))
    try:
        with CgroupTree(cgroups) as tree:
            return forked.run(lambda: _outer(function, directory, tree.directory, seconds), seconds + 5)
    finally:
        shutil.rmtree(directory)


class CgroupTree:
    """A cgroup directory of the host's v2 tree for one test; skips where the host has no v2 tree."""

    def __init__(self, wanted: bool) -> None:
        self.directory = ""
        if wanted:
            for mount in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
                if os.path.exists(mount + "/cgroup.procs"):
                    self.directory = f"{mount}/hako-test-{os.getpid()}"
                    break
            else:
                pytest.skip("needs a cgroup v2 tree mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified")

    def __enter__(self) -> CgroupTree:
        if self.directory:
            Path(self.directory).mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        if self.directory:
            deadline = time.monotonic() + 5
            (Path(self.directory) / "cgroup.kill").write_text("1")
            for path, _directories, _files in os.walk(self.directory, topdown=False):
                while True:
                    try:
                        os.rmdir(path)
                        break
                    except OSError:
                        if time.monotonic() > deadline:
                            raise
                        time.sleep(0.02)


def _outer(function: Callable[[Guest], Result], directory: Path, cgroup: str, seconds: float) -> Result:
    """In a child: leave the host's namespaces, then let PID 1 of the new ones work."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
    if cgroup:
        (Path(cgroup) / "agent").mkdir()
        (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))
        flags |= syscalls.CLONE_NEWCGROUP
    syscalls.unshare(flags | syscalls.CLONE_NEWNET)
    return forked.run(lambda: _inner(function, directory, bool(cgroup)), seconds)


def _inner(function: Callable[[Guest], Result], directory: Path, cgroups: bool) -> Result:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
    syscalls.mount("proc", "/proc", "proc", 0)
    syscalls.mount("tmpfs", str(directory), "tmpfs", 0, "mode=755")
    directory.chmod(0o755)
    root = ""
    if cgroups:
        syscalls.mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0)
        syscalls.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0)
        root = "/sys/fs/cgroup"
        # No processes beside cgroups with controllers.
        Path(root, "agent/cgroup.procs").write_text("0")
    return function(Guest(directory, root))
