"""Out-of-memory kills of containers, from the kernel's counters to whoever asks by GetOOMEvent.

Owns what was counted and not told yet (at most MAX_KEPT). Called by agent.sandbox. A container's kill must be
told before its process's exit: `check()` right before an exit is told makes sure of that, whichever event
came first.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cgroups import Cgroup
    from agent.linux.loop import Loop

MAX_KEPT = 64


class OomEvents:
    """See the module."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._counted: dict[str, int] = {}
        self._cgroups: dict[str, Cgroup] = {}
        self._untold: list[str] = []
        self._waiting: list[Callable[[str], None]] = []

    def watch(self, cid: str, cgroup: Cgroup) -> None:
        """Tell of kills in this container's cgroup from now on."""
        self._cgroups[cid] = cgroup
        self._counted[cid] = cgroup.oom_kills()
        cgroup.watch_oom(self._loop, lambda: self.check(cid))

    def forget(self, cid: str) -> None:
        """The container is being removed; what is not told yet stays."""
        self._cgroups.pop(cid, None)
        self._counted.pop(cid, None)

    def check(self, cid: str) -> None:
        """Tell now if there were kills since the last look."""
        cgroup = self._cgroups.get(cid)
        if cgroup is None:
            return
        kills = cgroup.oom_kills()
        if kills > self._counted[cid]:
            self._counted[cid] = kills
            self._tell(cid)

    def next(self, tell: Callable[[str], None]) -> Callable[[], None]:
        """`tell(container id)` at the next kill, or now if one is untold. Returns what cancels the wish."""
        if self._untold:
            tell(self._untold.pop(0))
            return lambda: None
        self._waiting.append(tell)
        return lambda: self._waiting.remove(tell) if tell in self._waiting else None

    def _tell(self, cid: str) -> None:
        if self._waiting:
            self._waiting.pop(0)(cid)
        elif cid not in self._untold:
            self._untold.append(cid)
            del self._untold[:-MAX_KEPT]
