"""The `--rm` of `hako run`: a container with the annotation io.hako.auto-remove=true goes as soon as it has
ended.

Owns: that duty, which the pod process has because the command may be killed before the container ends. Must
not know: the task service it stands in front of. Used by daemon.py as the sandbox's listener.

What goes: the task (as Delete would), its bundle directory, and then the pod process.
"""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.sandbox import container
    from shim.sandbox.process import Exit, GuestProcess

ANNOTATION = "io.hako.auto-remove"


class Service(Protocol):
    """What stands behind: the task service."""

    def exited(self, container: container.Container, process: GuestProcess, exit: Exit) -> None:
        """A process has ended."""

    def out_of_memory(self, container: container.Container) -> None:
        """A process was killed for memory."""

    def remove(self, container_id: str) -> None:
        """Delete the task as the engine's Delete would."""


class Listener:
    """Passes everything on, and removes the containers that want it."""

    def __init__(self, service: Service, shut_down: Callable[[], None]) -> None:
        self._service = service
        self._shut_down = shut_down

    def exited(self, container: container.Container, process: GuestProcess, exit: Exit) -> None:
        """A process has ended; if it was the container's own, the container may go with it."""
        self._service.exited(container, process, exit)
        wanted = (container.spec.annotations or {}).get(ANNOTATION) == "true"
        if wanted and process is container.init:
            threading.Thread(target=self._remove, args=(container,), name="hako-remove").start()

    def out_of_memory(self, container: container.Container) -> None:
        """A process was killed for memory."""
        self._service.out_of_memory(container)

    def _remove(self, container: container.Container) -> None:
        self._service.remove(container.id)
        shutil.rmtree(container.bundle, ignore_errors=True)
        self._shut_down()
