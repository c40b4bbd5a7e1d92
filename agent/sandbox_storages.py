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
        self._users: dict[str, int] = {}
        """mount point -> number of users, in the order of mounting"""

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
            if wanted != self._mounted:
                storage.mount(wanted, self._seconds)
            stays = wanted.driver in _OF_THE_SANDBOX and _OF_CONTAINER not in wanted.driver_options
            self._users[point] = 1 if stays else 0
        self._users[point] += 1
        return point

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

    def _unmount(self, point: str) -> None:
        del self._users[point]
        if self._mounted is not None and point == self._mounted.mount_point:
            return
        try:
            storage.unmount(point)
        except AgentError as error:
            log.error(str(error))
