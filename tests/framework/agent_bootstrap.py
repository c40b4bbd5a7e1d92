"""Runs as PID 1 of fresh namespaces, makes them look like a guest, becomes the agent on a unix socket.

    agent_bootstrap.py SOCKET CGROUP SITE [agent's arguments]

CGROUP: directory of the host's v2 tree that the guest sees as its whole tree; "" for none (--no-cgroups).
SITE: where google.protobuf and cffi are. The agent runs as in the image: isolated, without site, on the
system's Python.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN_AGENT = """
import sys
count = int(sys.argv[1])
sys.path[:0] = sys.argv[2 : 2 + count]
from agent.__main__ import main
sys.exit(main(sys.argv[2 + count :]))
"""


def main(path: str, cgroup: str, site: str, *arguments: str) -> None:
    sys.path.insert(0, str(ROOT))
    from agent.linux import netlink, syscalls

    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
    syscalls.mount("proc", "/proc", "proc", 0)
    syscalls.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    Path("/run/resolv.conf").touch()
    syscalls.mount("/run/resolv.conf", "/etc/resolv.conf", None, syscalls.MS_BIND)
    with netlink.Netlink() as kernel:
        kernel.set_link(1, up=True)
    if cgroup:
        enter_cgroup(cgroup)
    paths = [str(ROOT), site]
    os.chdir("/")
    argv = ["python3", "-IS", "-c", RUN_AGENT, str(len(paths)), *paths, "--unix", path, *arguments]
    os.execv("/usr/bin/python3", argv)


def enter_cgroup(directory: str) -> None:
    from agent.linux import syscalls

    Path(directory, "cgroup.procs").write_text("0")
    syscalls.unshare(syscalls.CLONE_NEWCGROUP)
    syscalls.mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0)
    syscalls.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0)
    Path("/sys/fs/cgroup/agent").mkdir()
    Path("/sys/fs/cgroup/agent/cgroup.procs").write_text("0")


if __name__ == "__main__":
    main(*sys.argv[1:])
