"""Bringing a container to its end, and waiting until what it had is gone.

Owns: signals and deadlines for that. Must not know: options. Called by stop.py, kill.py, rm.py, launch.py.
A pod is a pidfd here: that of its process.
"""

from __future__ import annotations

import os
import select
import signal

from shim.cli import shimbinary, status
from shim.errors import NotFound, Timeout, Unavailable, WrongState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.byhand.registry import Container
    from shim.cli.task import Task

KILL_PATIENCE = 10.0  # seconds until a SIGKILL must have worked, in a busy emulated guest too
TEARDOWN = 30.0  # seconds for the pod's process to take away the VM, its network and itself
LOG_TAIL = 4096
GIVE_UP = 5.0  # seconds for a pod to end upon SIGTERM, before it is killed and cleaned up after


def send(container: Container, number: int) -> None:
    """Send a signal. Raises WrongState if the container does not run."""
    task = connect(container)
    try:
        task.kill(number)
    except NotFound:
        raise _not_running(container) from None
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
    """Wait until the pod's process has ended and taken everything with it. Raises Timeout."""
    if not has_ended(pod, TEARDOWN):
        raise Timeout("its process does not end", step="remove virtual machine", object=container.name)


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


def clean_up(container: Container) -> None:
    """What is left of a pod whose process is gone, taken away as an engine would do it: `delete`."""
    shimbinary.delete(container)


def lost(container: Container) -> Unavailable:
    """What to say when the pod's process is gone before its container's end was told."""
    reason = _last_words(container) or "the container's process ended without a word: it was killed"
    return Unavailable(reason, object=container.name)


def _last_words(container: Container) -> str:
    """The last line that the pod's process left, unless that is an ordinary one (log.py)."""
    try:
        with open(container.file("log"), "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - LOG_TAIL))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines and not lines[-1].startswith('time="') else ""


def connect(container: Container) -> Task:
    """The container's task. Raises WrongState if it does not run."""
    try:
        return status.connect(container)
    except Unavailable:
        raise _not_running(container) from None


def _end(task: Task, number: int, patience: float) -> bool:
    """Whether the container has ended."""
    for signum, seconds in ((number, patience), (signal.SIGKILL, KILL_PATIENCE)):
        try:
            task.kill(signum)
            task.wait(seconds)
            return True
        except Timeout:
            continue
        except (NotFound, Unavailable):  # it has just ended, or all of its pod has
            return True
    return False


def has_ended(pod: int, timeout: float) -> bool:
    """Whether the pod's process has, waiting for that `timeout` seconds."""
    poll = select.poll()
    poll.register(pod, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def _not_running(container: Container) -> WrongState:
    return WrongState(f"{container.name} is not running: {status.of(container).text}")
