"""The sandbox's ipc and uts namespaces, which its containers share: made once, kept alive by bind mounts.

Owns /run/sandbox-ns. Called by agent.sandbox. Like Kata, so that a spec may name the paths.
"""

from __future__ import annotations

import os

from agent.errors import step_error
from agent.linux import syscalls

DIRECTORY = "/run/sandbox-ns"
KINDS = {"ipc": syscalls.CLONE_NEWIPC, "uts": syscalls.CLONE_NEWUTS}


_uts: tuple[int, int] | None = None
"""descriptors of the sandbox's uts namespace and of the agent's own"""


def create(directory: str = DIRECTORY) -> dict[str, str]:
    """Make both; kind -> path. Raises StepError and leaves nothing then.

    The agent steps into the new namespaces and back; it has one thread, and nobody sees it there.
    """
    global _uts
    own: dict[str, int] = {}
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        for kind in KINDS:
            own[kind] = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            paths = _create(directory)
        finally:
            for kind, flag in KINDS.items():
                syscalls.setns(own[kind], flag)
        _uts = os.open(paths["uts"], os.O_RDONLY | os.O_CLOEXEC), os.dup(own["uts"])
        return paths
    except OSError as error:
        remove(directory)
        raise step_error("create the sandbox's namespaces", error) from error
    finally:
        for fd in own.values():
            os.close(fd)


def _create(directory: str) -> dict[str, str]:
    paths = {kind: f"{directory}/{kind}" for kind in KINDS}
    syscalls.unshare(sum(KINDS.values()))
    for kind, path in paths.items():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
        syscalls.mount(f"/proc/self/ns/{kind}", path, None, syscalls.MS_BIND)
    return paths


def set_hostname(hostname: str) -> None:
    """The sandbox's, after `create`. Raises StepError."""
    assert _uts is not None
    theirs, own = _uts
    try:
        syscalls.setns(theirs, syscalls.CLONE_NEWUTS)
        try:
            syscalls.sethostname(hostname)
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWUTS)
    except OSError as error:
        raise step_error("set the sandbox's host name", error) from error


def remove(directory: str = DIRECTORY) -> None:
    """Let the namespaces go; those that processes are in live on. Idempotent, raises nothing."""
    global _uts
    for fd in _uts or ():
        os.close(fd)
    _uts = None
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
