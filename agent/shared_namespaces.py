"""The sandbox's ipc and uts namespaces, which its containers share: made once, kept alive by bind mounts.

Owns /run/sandbox-ns. Called by agent.sandbox. Like Kata, so that a spec may name the paths.
"""

from __future__ import annotations

import os

from agent.errors import step_error
from agent.linux import syscalls

DIRECTORY = "/run/sandbox-ns"
KINDS = {"ipc": syscalls.CLONE_NEWIPC, "uts": syscalls.CLONE_NEWUTS}


def create(hostname: str, directory: str = DIRECTORY) -> dict[str, str]:
    """Make both, with the host name; kind -> path. Raises StepError and leaves nothing then.

    The agent steps into the new namespaces and back; it has one thread, and nobody sees it there.
    """
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        own = [
            (os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC), flag)
            for kind, flag in KINDS.items()
        ]
        try:
            return _create(hostname, directory)
        finally:
            for fd, flag in own:
                syscalls.setns(fd, flag)
                os.close(fd)
    except OSError as error:
        remove(directory)
        raise step_error("create the sandbox's namespaces", error) from error


def _create(hostname: str, directory: str) -> dict[str, str]:
    paths = {kind: f"{directory}/{kind}" for kind in KINDS}
    syscalls.unshare(sum(KINDS.values()))
    if hostname:
        syscalls.sethostname(hostname)
    for kind, path in paths.items():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
        syscalls.mount(f"/proc/self/ns/{kind}", path, None, syscalls.MS_BIND)
    return paths


def remove(directory: str = DIRECTORY) -> None:
    """Let the namespaces go; those that processes are in live on. Idempotent, raises nothing."""
    for kind in KINDS:
        path = f"{directory}/{kind}"
        try:
            syscalls.umount2(path, syscalls.MNT_DETACH)
        except OSError:
            pass  # was never mounted
        try:
            os.unlink(path)
        except OSError:
            pass  # is not there
