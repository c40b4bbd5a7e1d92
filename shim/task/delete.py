"""`containerd-shim-hako-v2 delete`: whatever is left of a container, after a crash or after nothing at all.

Owns: deciding what is left. Must not know: how it is taken away (shim/sandbox/cleanup.py). containerd runs
it after every ordinary delete too, gives it 5 s, and wants status 0 and a DeleteResponse whatever it finds.

A living pod process answers for its containers itself: the container is killed and deleted through its task
API. When that process is gone, the kernel has ended its children with it, and the state file says what else
there was.
"""

from __future__ import annotations

import os
import time

from shim import paths
from shim.oci import grouping
from shim.task import forkclient, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.task.flags import Invocation

KILLED = 137
DEADLINE = 4.0  # seconds; containerd kills us after 5


def delete(invocation: Invocation) -> bytes:
    """Clean up; the DeleteResponse {pid, exit_status, exited_at} that goes to stdout."""
    bundle = os.path.abspath(invocation.bundle or os.getcwd())
    sandbox_id = grouping.sandbox_of(grouping.read_annotations(bundle), invocation.id)
    directory = paths.sandbox_dir(sandbox_id, invocation.namespace)
    pid = 0
    if not os.path.isdir(directory):
        _end_unused(paths.task_socket(sandbox_id, invocation.namespace), invocation.id)
    if os.path.isdir(directory):  # or by now: a process that was ended had just begun its pod's machine
        pid = _delete_from(directory, invocation, sandbox_id)
    _unmount_rootfs(bundle)
    return response(pid, KILLED, time.time_ns())


def response(pid: int, status: int, nanoseconds: int) -> bytes:
    """Serialized containerd.task.v2.DeleteResponse."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    stamp = wire.integer(1, seconds) + wire.integer(2, rest)
    return wire.integer(1, pid) + wire.integer(2, status) + wire.blob(3, stamp)


def _delete_from(directory: str, invocation: Invocation, sandbox_id: str) -> int:
    from shim.sandbox import cleanup, store

    socket_path = paths.task_socket(sandbox_id, invocation.namespace)
    state = store.read(directory) or {}
    if store.is_alive(directory):
        containers = state.get("containers")
        if containers and invocation.id not in containers:
            return 0
        if not containers:  # it takes down what it had, or was never asked for anything
            _end_unused(socket_path, invocation.id)
        elif _deleted_through(socket_path, invocation.id) or invocation.id != sandbox_id:
            return 0
        else:  # it hangs: the engine wants its pod gone
            cleanup.kill(state["pid"], state["start_time"])
    return cleanup.clean_up(directory, socket_path, invocation.id)


def _deleted_through(socket_path: str, container_id: str) -> bool:
    """Kill and delete a container of a living pod process; whether it did so."""
    from agent.ttrpc.status import RpcError
    from shim.task import remote

    try:
        remote.kill_and_delete(socket_path, container_id, DEADLINE)
    except (RpcError, OSError) as exc:
        os.write(2, f"delete {container_id}: {exc}\n".encode())
        return False
    return True


def _end_unused(socket_path: str, container_id: str) -> None:
    """End a pod process that was started and never got a task: its engine, or `hako run`, was killed in between."""
    if not os.path.exists(socket_path):
        return
    from agent.ttrpc.status import RpcError
    from shim.task import remote

    try:
        remote.shut_down(socket_path, container_id, DEADLINE)
    except (RpcError, OSError) as exc:
        os.write(2, f"end the process of {container_id}: {exc}\n".encode())
    if not forkclient.is_served(socket_path):  # it has ended by itself, or was killed, before or just now
        _unlink(socket_path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _unmount_rootfs(bundle: str) -> None:
    """What is still mounted in the bundle keeps containerd from removing it."""
    rootfs = os.path.join(bundle, "rootfs")
    if not os.path.ismount(rootfs):
        return
    from shim.sandbox.rootfs import unmount

    unmount(rootfs)
