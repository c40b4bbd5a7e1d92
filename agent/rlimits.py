"""Resource limits of a process: OCI names to numbers, and prlimit(2) on the waiting child.

Called by agent.container: plan() before the fork, apply() in the agent just before the child executes its
program. The agent sets them, not the child: it may raise hard limits (a child in a user namespace may not),
and a small RLIMIT_AS or RLIMIT_NOFILE must not break the child's own last steps.
"""

from __future__ import annotations

from agent.errors import InvalidSpec
from agent.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.api import oci_pb2

    Limits = list[tuple[int, int, int]]

# asm-generic/resource.h
NUMBERS = {
    "RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5, "RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}  # fmt: skip


def plan(rlimits: Iterable[oci_pb2.POSIXRlimit]) -> Limits:
    """(resource number, soft, hard) of each limit. Raises InvalidSpec for an unknown, doubled or inverted
    one.
    """
    limits: Limits = []
    seen: set[str] = set()
    for index, limit in enumerate(rlimits):
        field = f"process.rlimits[{index}]"
        if limit.Type not in NUMBERS:
            raise InvalidSpec(field + ".type", f"unknown resource limit {limit.Type!r}")
        if limit.Type in seen:
            raise InvalidSpec(field + ".type", f"{limit.Type} is given twice")
        if limit.Soft > limit.Hard:
            raise InvalidSpec(field + ".soft", f"{limit.Soft} is above the hard limit {limit.Hard}")
        seen.add(limit.Type)
        limits.append((NUMBERS[limit.Type], limit.Soft, limit.Hard))
    return limits


def apply(pid: int, limits: Limits) -> None:
    """Set the limits of process `pid`, a child that is not reaped yet. Raises OSError."""
    for resource, soft, hard in limits:
        syscalls.prlimit(pid, resource, soft, hard)
