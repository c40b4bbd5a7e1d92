"""Bringing a container to its end, and waiting until what it had is gone.

Owns: signals and deadlines for that. Must not know: options. Called by stop.py, kill.py, rm.py, launch.py.
A pod is a pidfd here: that of its process.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

from shim import paths
from shim.byhand import aftercare, registry
from shim.cli import shimbinary, status
from shim.cli.podlog import PodLog
from shim.errors import NotFound, Timeout, Unavailable, WrongState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.byhand.registry import Container
    from shim.cli.task import Task

KILL_PATIENCE = 10.0  # seconds until a SIGKILL must have worked, in a busy emulated guest too
TEARDOWN = 30.0  # seconds for the pod's process to take away the VM, its network and itself
KILLED = 128 + signal.SIGKILL
GIVE_UP = 5.0  # seconds for a pod to end upon SIGTERM, before it is killed and cleaned up after


def send(container: Container, number: int) -> None:
    """Send a signal. Raises WrongState if the container does not run."""
    task = connect(container)
    try:
        task.kill(number)
    except NotFound:
        raise not_running(container) from None
    finally:
        task.close()


def stop(container: Container, number: int, patience: float) -> None:
    """`number`, and SIGKILL if the container has not ended `patience` seconds later; it may have before."""
    if status.has_ended(container):
        return
    task = connect(container)
    try:
        pod = task.pod()
        try:
            if _end(task, number, patience):
                await_end(pod, container)
            else:  # the guest hangs: its VM goes
                end_pod(container, pod)
        finally:
            os.close(pod)
    finally:
        task.close()


def kill(container: Container) -> None:
    """SIGKILL, to its end."""
    stop(container, signal.SIGKILL, KILL_PATIENCE)


def await_end(pod: int, container: Container) -> None:
    """Wait until the pod's process has ended and taken everything with it; if it was killed before it had done so, that
    is done here. Raises Timeout.
    """
    if not has_ended(pod, TEARDOWN):
        raise Timeout("its process does not end", step="remove virtual machine", object=container.name)
    clean_up(container)
    if container.remove and os.path.isdir(container.directory):  # which is the last that goes
        aftercare.removed(container.id)


def clean_up(container: Container) -> None:
    """What is left of a pod whose process is gone, taken away as an engine would do it: `delete`."""
    socket = paths.task_socket(container.id, registry.NAMESPACE)
    if os.path.isdir(paths.sandbox_dir(container.id, registry.NAMESPACE)) or os.path.exists(socket):
        shimbinary.delete(container)


def end_pod(container: Container, pod: int) -> None:
    """End a pod in whatever state it is: it is asked; killed, if that takes long; and cleaned up after."""
    for number, patience in ((signal.SIGTERM, GIVE_UP), (signal.SIGKILL, KILL_PATIENCE)):
        try:
            signal.pidfd_send_signal(pod, number)
        except ProcessLookupError:
            pass
        if has_ended(pod, patience):
            break
    clean_up(container)


def lost(container: Container) -> Unavailable:
    """What to say when the pod's process is gone before its container's end was told."""
    log = PodLog(container)
    reason = log.last_words() or log.last_error() or "the container's process ended without a word: it was killed"
    log.close()
    return Unavailable(reason, object=container.name)


def explain(log: PodLog, container: Container, exit_status: int) -> None:
    """Tell the user why a command was killed, if it was not by whom he knows: its machine has ended."""
    reason = log.last_error() if exit_status == KILLED else ""
    if reason:
        print(f"hako: {container.name}: {reason.removeprefix(f'sandbox {container.id}: ')}", file=sys.stderr)


def connect(container: Container) -> Task:
    """The container's task. Raises WrongState if it does not run."""
    try:
        return status.connect(container)
    except Unavailable:
        raise not_running(container) from None


def _end(task: Task, number: int, patience: float) -> bool:
    """Whether the container has ended. A guest that hangs takes a signal as little as it ends."""
    for signum, seconds in ((number, patience), (signal.SIGKILL, KILL_PATIENCE)):
        end = time.monotonic() + seconds
        try:
            task.kill(signum, timeout=max(1.0, seconds))
            task.wait(max(0.0, end - time.monotonic()))
            return True
        except Timeout:
            continue
        except WrongState:  # it is being made, by somebody who is gone
            return False
        except (NotFound, Unavailable):  # it has just ended, or all of its pod has
            return True
    return False


def has_ended(pod: int, timeout: float) -> bool:
    """Whether the pod's process has, waiting for that `timeout` seconds."""
    poll = select.poll()
    poll.register(pod, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def not_running(container: Container) -> WrongState:
    """It has ended, or was never started."""
    return WrongState(f"{container.name} is not running: {status.of(container).text}")
