"""The storages of a sandbox and who uses them: several containers may name the same mount point.

Owns the counts. Mounting itself is agent.storage. Called by agent.sandbox. What lives in the guest's memory
(Kubernetes' emptyDir) stays until the sandbox ends, because a container that uses it may be restarted;
anything else is unmounted with its last user. The share of a VM that was saved with it is mounted already, and stays.
"""

from __future__ import annotations

from agent import log, storage
from agent.api import agent_pb2
from agent.errors import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SHARE_POINT = "/run/kata-containers/shared/containers"
SHM = agent_pb2.Storage(
    driver="ephemeral", source="shm", fstype="tmpfs", options=["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"],
    mount_point="/run/kata-containers/sandbox/shm",
)  # fmt: skip
"""what the host asks for unless an engine wants another size; a template has it mounted"""
_OF_THE_SANDBOX = ("ephemeral", "local")
_OF_CONTAINER = "io.hako.lifetime=container"
"""driver option (hako's own): memory that goes with the container"""


def share(tag: str) -> agent_pb2.Storage:
    """What the host asks to be mounted where all containers' files are."""
    return agent_pb2.Storage(driver="virtio-fs", source=tag, fstype="virtiofs", options=["nodev"], mount_point=SHARE_POINT)


class SandboxStorages:
    """See the module."""

    def __init__(self, seconds: float, saved_share: str = "") -> None:
        """`seconds`: how long a device may take to appear; `saved_share`: tag of the one that is mounted already."""
        self._seconds = seconds
        self._mounted = share(saved_share) if saved_share else None
        self._ready: agent_pb2.Storage | None = None
        """mounted, and nobody's yet"""
        self._users: dict[str, int] = {}
        """mount point -> number of users, in the order of mounting"""

    def prepare(self) -> None:
        """Mount what nearly every sandbox wants. Raises what agent.storage.mount does. Idempotent."""
        if self._ready is None and SHM.mount_point not in self._users:
            storage.mount(SHM, self._seconds)
            self._ready = SHM

    def acquire(self, storages: Iterable[agent_pb2.Storage]) -> list[str]:
        """Mount what is not mounted yet; the mount points to release. Nothing is held if it fails.

        Raises what agent.storage.mount does.
        """
        held: list[str] = []
        try:
            for wanted in storages:
                held.append(self._acquire(wanted))
        except BaseException:
            self.release(held)
            raise
        return held

    def _acquire(self, wanted: agent_pb2.Storage) -> str:
        point = wanted.mount_point.rstrip("/") or wanted.mount_point
        if point not in self._users:
            if wanted != self._mounted and not self._take_ready(wanted):
                storage.mount(wanted, self._seconds)
            stays = wanted.driver in _OF_THE_SANDBOX and _OF_CONTAINER not in wanted.driver_options
            self._users[point] = 1 if stays else 0
        self._users[point] += 1
        return point

    def _take_ready(self, wanted: agent_pb2.Storage) -> bool:
        """Whether it is mounted already; another one at the same place is taken away."""
        ready = self._ready
        if ready is None or wanted.mount_point != ready.mount_point:
            return False
        self._ready = None
        if wanted == ready:
            return True
        storage.unmount(ready.mount_point)
        return False

    def release(self, points: Iterable[str]) -> None:
        """Give back what `acquire` returned. What cannot be unmounted is logged and forgotten."""
        for point in reversed(list(points)):
            self._users[point] -= 1
            if self._users[point] == 0:
                self._unmount(point)

    def release_all(self) -> None:
        """Unmount everything, last mounted first."""
        for point in reversed(list(self._users)):
            self._unmount(point)
        ready, self._ready = self._ready, None
        if ready is not None:
            storage.unmount(ready.mount_point)

    def _unmount(self, point: str) -> None:
        del self._users[point]
        if self._mounted is not None and point == self._mounted.mount_point:
            return
        try:
            storage.unmount(point)
        except AgentError as error:
            log.error(str(error))
