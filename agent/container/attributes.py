"""What the scheduler and the kernel know of a process beyond its user: policy, I/O priority, CPUs,
personality, NUMA.

Owns: the OCI names of these and their system calls. plan() is pure and runs before the fork, the rest in the
child, as root. Called by agent.container alone.
"""

from __future__ import annotations

import os

from agent.errors import InvalidSpec
from agent.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.api import oci_pb2

# linux/sched.h
POLICIES = {
    "SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_IDLE": 5, "SCHED_DEADLINE": 6,
}  # fmt: skip
SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01, "SCHED_FLAG_RECLAIM": 0x02, "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08, "SCHED_FLAG_KEEP_PARAMS": 0x10, "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}  # fmt: skip
# linux/ioprio.h
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
# linux/personality.h
DOMAINS = {"LINUX": 0x0000, "LINUX32": 0x0008}
# linux/mempolicy.h
MEMORY_MODES = {
    "MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2, "MPOL_INTERLEAVE": 3, "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6,
}  # fmt: skip
MEMORY_FLAGS = {
    "MPOL_F_NUMA_BALANCING": 1 << 13, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_STATIC_NODES": 1 << 15,
}  # fmt: skip
MAX_CPU = 8192


class Attributes:
    """None: as inherited from the agent."""

    __slots__ = ("cpus_first", "cpus_then", "io_priority", "memory_policy", "personality", "scheduler")

    def __init__(self) -> None:
        self.scheduler: tuple[int, int, int, int, tuple[int, int, int]] | None = None
        """policy, flags, nice, priority, (runtime, deadline, period) in ns"""
        self.io_priority: tuple[int, int] | None = None
        """class, level"""
        self.cpus_first: set[int] | None = None
        """CPUs before the cgroup is joined, for an exec"""
        self.cpus_then: set[int] | None = None
        self.personality: int | None = None
        self.memory_policy: tuple[int, int] | None = None
        """mode with flags, mask of nodes"""


def plan(process: oci_pb2.Process, linux: oci_pb2.Linux, *, is_exec: bool) -> Attributes:
    """What the process and its container ask for; CPU affinity is an exec's. Raises InvalidSpec."""
    result = Attributes()
    if process.HasField("Scheduler"):
        result.scheduler = _scheduler(process.Scheduler)
    if process.HasField("IOPriority"):
        priority = process.IOPriority
        io_class = _lookup(IO_CLASSES, priority.Class, "process.ioPriority.class")
        result.io_priority = (io_class, priority.Priority)
    if is_exec and process.HasField("ExecCPUAffinity"):
        affinity = process.ExecCPUAffinity
        result.cpus_first = parse_cpus(affinity.Initial, "process.execCPUAffinity.initial")
        result.cpus_then = parse_cpus(affinity.Final, "process.execCPUAffinity.final")
    if linux.HasField("Personality"):
        result.personality = _lookup(DOMAINS, linux.Personality.Domain, "linux.personality.domain")
    if linux.HasField("MemoryPolicy"):
        result.memory_policy = _memory_policy(linux.MemoryPolicy)
    return result


def _scheduler(scheduler: oci_pb2.LinuxScheduler) -> tuple[int, int, int, int, tuple[int, int, int]]:
    flags = 0
    for flag in scheduler.Flags:
        flags |= _lookup(SCHED_FLAGS, flag, "process.scheduler.flags")
    policy = _lookup(POLICIES, scheduler.Policy, "process.scheduler.policy")
    times = (scheduler.Runtime, scheduler.Deadline, scheduler.Period)
    return policy, flags, scheduler.Nice, scheduler.Priority, times


def _memory_policy(policy: oci_pb2.LinuxMemoryPolicy) -> tuple[int, int]:
    mode = _lookup(MEMORY_MODES, policy.Mode, "linux.memoryPolicy.mode")
    for flag in policy.Flags:
        mode |= _lookup(MEMORY_FLAGS, flag, "linux.memoryPolicy.flags")
    nodes = parse_cpus(policy.Nodes, "linux.memoryPolicy.nodes") or set()
    return mode, sum(1 << node for node in nodes)


def _lookup(table: dict[str, int], name: str, field: str) -> int:
    if name not in table:
        raise InvalidSpec(field, f"unknown value {name!r}")
    return table[name]


def parse_cpus(text: str, field: str) -> set[int] | None:
    """A kernel CPU list such as "0-2,7" as a set; None for ""."""
    if not text:
        return None
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        last = last or first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < MAX_CPU):
            raise InvalidSpec(field, f"{text!r} is not a list of numbers and ranges")
        cpus.update(range(int(first), int(last) + 1))
    return cpus


def apply(attributes: Attributes) -> None:
    """Put all but `cpus_first` in force on the calling process. Raises OSError."""
    if attributes.personality is not None:
        syscalls.personality(attributes.personality)
    if attributes.scheduler is not None:
        syscalls.sched_setattr(0, *attributes.scheduler)
    if attributes.io_priority is not None:
        syscalls.ioprio_set(0, *attributes.io_priority)
    if attributes.memory_policy is not None:
        mode, nodes = attributes.memory_policy
        syscalls.set_mempolicy(mode, nodes, nodes.bit_length())
    set_cpus(attributes.cpus_then)


def set_cpus(cpus: set[int] | None) -> None:
    """Bind the calling process to CPUs, unless None."""
    if cpus is not None:
        os.sched_setaffinity(0, cpus)
