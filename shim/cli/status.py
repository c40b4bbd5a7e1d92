"""What a container is doing, found out from files and, if its process lives, from it.

Owns: the words `starting`, `created`, `running`, `paused`, `exited`, `dead`. `dead`: the pod's process was
killed, and nobody knows the exit status; such a container can only be removed. Must not know: how to change
anything.
"""

from __future__ import annotations

import os

from shim import paths
from shim.byhand import aftercare, registry
from shim.errors import HakoError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.byhand.registry import Container
    from shim.cli.task import Task

STARTING, CREATED, RUNNING, PAUSED = "starting", "created", "running", "paused"
EXITED, DEAD = "exited", "dead"
LIVE = (STARTING, CREATED, RUNNING, PAUSED)


class State:
    """One look. `exit_status` and `finished` (seconds since 1970) are None unless the container has ended."""

    __slots__ = ("exit_status", "finished", "status")

    def __init__(self, status: str, exit_status: int | None = None, finished: float | None = None) -> None:
        self.status = status
        self.exit_status = exit_status
        self.finished = finished

    @property
    def text(self) -> str:
        """`running`, `exited (137)`."""
        return self.status if self.exit_status is None else f"{self.status} ({self.exit_status})"


def of(container: Container) -> State:
    """The state now. Asks the pod's process only if it lives."""
    ended = aftercare.exit_of(container)
    if ended is not None:
        return State(EXITED, *ended)
    if not process_lives(container):
        return State(STARTING if registry.is_locked(container) else DEAD)
    try:
        task = connect(container)
    except HakoError:
        return State(DEAD)
    try:
        return _from_task(task)
    finally:
        task.close()


def has_ended(container: Container) -> bool:
    """Whether nothing more can come from it; only looks at files."""
    if os.path.exists(container.file(registry.EXIT)):
        return True
    return not process_lives(container) and not registry.is_locked(container)


def connect(container: Container) -> Task:
    """The container's task, to make calls. Raises errors.Unavailable."""
    from shim.cli.task import Task

    return Task(paths.task_socket(container.id, registry.NAMESPACE), container.id)


def process_lives(container: Container) -> bool:
    """Whether the pod's process is there."""
    from shim.sandbox import store

    return store.is_alive(paths.sandbox_dir(container.id, registry.NAMESPACE))


def _from_task(task: Task) -> State:
    try:
        answer = task.state()
    except HakoError:  # it is between two states: no task yet, or the process is just leaving
        return State(STARTING)
    if answer.status == 3:
        return State(EXITED, int(answer.exit_status), answer.exited_at.seconds + answer.exited_at.nanos / 1e9)
    return State({1: CREATED, 2: RUNNING, 4: PAUSED, 5: PAUSED}.get(answer.status, STARTING))
