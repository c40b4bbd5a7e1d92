"""The binary containerd-shim-hako-v2: `start`, `delete`, -info and -v.

Owns: what goes to stdout, the fork, the pod's socket and address files. Must not know: what the pod process
does with the socket (podprocess.py) or what cleaning up means (shim/sandbox/cleanup.py). Called by the
installed launcher through `main`. Imports almost nothing: `start` and `delete` are on the path of every
container.

`start` answers with a plain address, the one dialect that every containerd from 1.4 on and CRI-O
understand, prints nothing on stderr when it succeeds (containerd reads both together), and forks the pod
process, which keeps none of its descriptors (containerd waits for their end).
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SOCK_STREAM, socket

from shim import paths, trace
from shim.errors import HakoError
from shim.oci import grouping
from shim.task import deleted, flags, forkclient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.task import options

VERSION = "0.1.0"
PATIENCE = 2.0  # seconds for a pod process to accept a connection
ADDRESS_FILE = "address"  # containerd 1.x and CRI-O find the process again by it, in every container's bundle


def main(arguments: list[str] | None = None) -> int:
    """Run one action and return the exit status; errors are one line on stderr."""
    try:
        invocation = flags.parse(sys.argv[1:] if arguments is None else arguments)
        return _dispatch(invocation)
    except (flags.UsageError, HakoError, OSError, ValueError) as exc:
        sys.stderr.write(f"containerd-shim-hako-v2: {exc}\n")
        return 1


def _dispatch(invocation: flags.Invocation) -> int:
    if invocation.v:
        return _write(f"containerd-shim-hako-v2:\n  Version:  {VERSION}\n".encode())
    if invocation.info:
        from shim.task import info

        return _write(info.runtime_info(VERSION))
    if invocation.action == forkclient.ACTION:
        from shim.task import forkserver

        return forkserver.main(invocation)
    if invocation.action == "pool":
        from shim.task import poolorder

        return _write(poolorder.main(invocation))
    if not invocation.namespace:
        raise HakoError("shim namespace cannot be empty")
    if not invocation.id:
        raise HakoError("shim id cannot be empty")
    if invocation.action == "start":
        return start(invocation)
    if invocation.action == "delete":
        from shim.task import delete

        return _write(delete.delete(invocation))
    raise flags.UsageError(f"unknown action {invocation.action!r}; start and delete exist")


def start(invocation: flags.Invocation) -> int:
    """Print the address of the pod's process, which is started if there is none yet."""
    bundle = os.path.abspath(invocation.bundle or os.getcwd())
    deleted.forget(bundle)
    annotations = grouping.read_annotations(bundle)
    sandbox_id = grouping.sandbox_of(annotations, invocation.id)
    path = paths.task_socket(sandbox_id, invocation.namespace)
    if not (os.path.exists(path) and forkclient.is_served(path, PATIENCE)):
        if grouping.role_of(annotations) == grouping.CONTAINER:
            raise HakoError("its process is gone", step="start", object=f"sandbox {sandbox_id}")
        _spawn(path, invocation, sandbox_id, bundle)
    _write_address(bundle, f"unix://{path}")
    return _write(f"unix://{path}".encode())


def _bind(path: str) -> socket | None:
    """A listening socket at `path`, or None if a living process listens there already."""
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    for _attempt in (1, 2):
        listener = socket(AF_UNIX, SOCK_STREAM)
        try:
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(128)
            return listener
        except OSError:
            listener.close()
            if forkclient.is_served(path, PATIENCE):
                return None
            _unlink(path)
    raise HakoError("cannot be bound", step="start", object=f"socket {path}")


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _spawn(path: str, invocation: flags.Invocation, sandbox_id: str, bundle: str) -> None:
    """The pod process, from the forkserver or forked here: it inherits nothing of our stdio.

    The socket comes last: if we are killed nobody removes it before a process has it.
    """
    from shim.task import options

    trace.note_process_start()
    given = options.parse_stdin(options.read_stdin(), invocation.id, invocation.namespace)
    score = _oom_score_adj(os.getppid())
    offer = forkclient.reach(_job(path, invocation, sandbox_id, bundle, given))
    listener = _bind(path)
    if listener is None:
        return  # another `start` was faster
    waiting = offer.give(listener) if offer is not None else None
    pid = waiting.pid if waiting is not None else os.fork()
    if pid == 0:
        from shim.task.podprocess import become_daemon

        become_daemon(listener, path, invocation, sandbox_id, bundle, given)
    listener.close()
    _set_oom_score_adj(pid, score + 1)
    if given.shim_cgroup:
        _join_cgroup(given.shim_cgroup, pid)
    if waiting is not None:
        waiting.go()


def _job(path: str, invocation: flags.Invocation, sandbox_id: str, bundle: str, given: options.Options) -> dict[str, Any]:
    """What the forkserver's child has to know of us."""
    return {
        "path": path,
        "invocation": vars(invocation),
        "sandbox": sandbox_id,
        "bundle": bundle,
        "options": [given.config_path, given.shim_cgroup],
        "environment": dict(os.environ),
        "began": trace.process_began(),
    }


def _write_address(bundle: str, address: str) -> None:
    temporary = os.path.join(bundle, f".{ADDRESS_FILE}")
    with open(temporary, "w", encoding="ascii") as stream:
        stream.write(address)
    os.rename(temporary, os.path.join(bundle, ADDRESS_FILE))


def _oom_score_adj(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as stream:
            return int(stream.read())
    except (OSError, ValueError):
        return 0


def _set_oom_score_adj(pid: int, score: int) -> None:
    """The engine's score plus one: under pressure the kernel ends the pod before the engine."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as stream:
            stream.write(str(min(score, 1000)))
    except OSError:
        pass  # lowering one's own score needs CAP_SYS_RESOURCE


def _join_cgroup(cgroup: str, pid: int) -> None:
    from shim import cgroups

    cgroups.join_everywhere(cgroup, pid)


def _write(data: bytes) -> int:
    os.write(1, data)
    return 0
