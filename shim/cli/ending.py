"""Bringing a container to its end, and waiting until what it had is gone.

Owns: signals and deadlines for that. Must not know: options. Called by stop.py, kill.py, rm.py, run.py.
"""

from __future__ import annotations

import os
import signal
import time

from shim import paths, process
from shim.byhand import registry
from shim.cli import shimbinary, status
from shim.errors import HakoError, NotFound, Timeout, Unavailable, WrongState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.byhand.registry import Container
    from shim.cli.task import Task

KILL_PATIENCE = 10.0  # seconds until a SIGKILL must have worked, in a busy emulated guest too
TEARDOWN = 30.0  # seconds for the pod's process to take away the VM, its network and itself
POLL = 0.02


def send(container: Container, number: int) -> None:
    """Send a signal. Raises WrongState if the container does not run."""
    task = _task(container)
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
    task = _task(container)
    try:
        _end(task, number, patience)
    finally:
        task.close()
    await_teardown(container)


def kill(container: Container) -> None:
    """SIGKILL, to its end."""
    stop(container, signal.SIGKILL, KILL_PATIENCE)


def await_teardown(container: Container) -> None:
    """Wait until the pod's process has ended and taken everything with it. Raises Timeout."""
    deadline = time.monotonic() + TEARDOWN
    while status.process_lives(container) or os.path.exists(_socket(container)):
        if time.monotonic() > deadline:
            raise Timeout("its process does not end", step="remove VM", object=container.name)
        time.sleep(POLL)


def clean_up(container: Container) -> None:
    """What is left of a pod whose process was killed, as containerd would do it: `delete`."""
    argv = shimbinary.argv(container, "delete")
    process.run(argv, timeout=TEARDOWN)


def _end(task: Task, number: int, patience: float) -> None:
    for signum, seconds in ((number, patience), (signal.SIGKILL, KILL_PATIENCE)):
        try:
            task.kill(signum)
            task.wait(seconds)
            return
        except Timeout:
            continue
        except (NotFound, Unavailable):  # it has just ended, or all of its pod has
            return
    raise HakoError("it does not end after SIGKILL", object=task.id)


def _task(container: Container) -> Task:
    try:
        return status.connect(container)
    except Unavailable:
        raise _not_running(container) from None


def _not_running(container: Container) -> WrongState:
    return WrongState(f"{container.name} is not running: {status.of(container).text}")


def _socket(container: Container) -> str:
    return paths.task_socket(container.id, registry.NAMESPACE)
