"""The end of a container made by hand: nobody calls Delete, because `hako run` may be gone by then.

Owns: that duty of the pod process. A container with the annotation io.hako.auto-remove is deleted as soon as
it has ended, and the pod process ends with it: `true` (--rm) leaves nothing, `false` leaves its log, root
filesystem and exit status. Must not know: the task service it stands in front of, what a container has
beside its pod (shim/byhand/aftercare.py). Used by daemon.py as the sandbox's listener.
"""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Protocol

from shim.errors import HakoError
from shim.sandbox.state import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shim.sandbox import container
    from shim.sandbox.process import Exit, GuestProcess

ANNOTATION = "io.hako.auto-remove"


def abandoned(containers: Iterable[container.Container]) -> bool:
    """Whether these, of whose makers none is connected any more, will never be started: made by hand, and created."""
    return all(item.init.status is Status.CREATED and ANNOTATION in (item.spec.annotations or {}) for item in containers)


class Service(Protocol):
    """What stands behind: the task service."""

    def exited(self, container: container.Container, process: GuestProcess, exit: Exit) -> None:
        """A process has ended."""

    def out_of_memory(self, container: container.Container) -> None:
        """A process was killed for memory."""

    def remove(self, container_id: str) -> None:
        """Delete the task as the engine's Delete would."""


class Listener:
    """Passes everything on, and ends the containers that nobody else ends. `log`: level and message."""

    def __init__(self, service: Service, shut_down: Callable[[], None], log: Callable[[str, str], None]) -> None:
        self._service = service
        self._shut_down = shut_down
        self._log = log

    def exited(self, container: container.Container, process: GuestProcess, exit: Exit) -> None:
        """A process has ended; if it was the first one of a container made by hand, all of it ends."""
        self._service.exited(container, process, exit)
        wish = (container.spec.annotations or {}).get(ANNOTATION)
        if wish in ("true", "false") and process is container.init:
            arguments = (container, exit, wish == "true")
            threading.Thread(target=self._end, args=arguments, name="hako-remove").start()

    def out_of_memory(self, container: container.Container) -> None:
        """A process was killed for memory."""
        self._service.out_of_memory(container)

    def _end(self, container: container.Container, exit: Exit, removed: bool) -> None:
        from shim.byhand import aftercare

        try:
            known = self._tried("keep its status", lambda: aftercare.exited(container.id, exit.status, exit.at / 1e9))
            self._tried("delete", lambda: self._service.remove(container.id))
            if removed:
                self._tried("remove", lambda: aftercare.removed(container.id))
                shutil.rmtree(container.bundle, ignore_errors=True)
                return
            if not known:  # its pod's files have made room
                self._tried("keep its status", lambda: aftercare.exited(container.id, exit.status, exit.at / 1e9))
            self._tried("give its network back", lambda: aftercare.ended(container.id))
        finally:
            self._shut_down()

    def _tried(self, what: str, action: Callable[[], object]) -> bool:
        """Whether it succeeded: a step that fails (a full disk) must not keep the others from being done."""
        try:
            action()
        except (HakoError, OSError) as exc:
            self._log("error", f"{what}: {exc}")
            return False
        return True
