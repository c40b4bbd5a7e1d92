"""Linux capabilities of a process: names to sets, and the sets put in force.

Owns: the names, the rules among the five sets, the calls in the order that the kernel demands. Knows nothing
of containers. Called by agent.container: from_spec() before the fork, the rest in the child.

What the running kernel has is read once, from the agent's own procfs and before any container exists: a
container that mounts something over /proc/sys must not decide which capabilities an exec loses.
"""

from __future__ import annotations

from agent.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.api import oci_pb2

# linux/capability.h, in the order of their numbers.
NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
    "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM",
    "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
NUMBERS = {"CAP_" + name: number for number, name in enumerate(NAMES)}
SYS_ADMIN = 1 << NUMBERS["CAP_SYS_ADMIN"]

_last: list[int] = []


def last() -> int:
    """The highest capability number of the running kernel; read at the first call, which the agent makes as
    it starts.
    """
    if not _last:
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            _last.append(int(file.read()))
    return _last[0]


class Capabilities:
    """The five sets as bit masks, and the names that this kernel or this table does not know."""

    __slots__ = ("ambient", "bounding", "effective", "inheritable", "permitted", "unknown")

    def __init__(self, bounding: int, effective: int, inheritable: int, permitted: int, ambient: int) -> None:
        self.bounding = bounding
        self.permitted = permitted
        # What the kernel would refuse is not asked for: a name that only one set has must not fail the
        # container.
        self.effective = effective & permitted
        self.inheritable = inheritable
        self.ambient = ambient & permitted & inheritable
        self.unknown: tuple[str, ...] = ()


def from_spec(caps: oci_pb2.LinuxCapabilities | None) -> Capabilities:
    """The sets of an OCI process; None, as for runc, means no capability at all. Unknown names go to
    `unknown`.
    """
    if caps is None:
        return Capabilities(0, 0, 0, 0, 0)
    unknown: list[str] = []
    names = (caps.Bounding, caps.Effective, caps.Inheritable, caps.Permitted, caps.Ambient)
    result = Capabilities(*[mask(each, unknown) for each in names])
    result.unknown = tuple(sorted(set(unknown)))
    return result


def mask(names: Iterable[str], unknown: list[str]) -> int:
    """The bit mask of `names` (`CAP_X` in any case); what this kernel lacks is appended to `unknown`."""
    bits = 0
    top = last()
    for name in names:
        number = NUMBERS.get(name.upper(), -1)
        if 0 <= number <= top:
            bits |= 1 << number
        else:
            unknown.append(name)
    return bits


def drop_bounding(keep: int) -> None:
    """Remove all but `keep` from the bounding set. Needs CAP_SETPCAP."""
    for number in range(last() + 1):
        if not keep >> number & 1:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)


def keep_over_setuid() -> None:
    """Permitted capabilities stay when the uid changes from 0; the kernel clears the flag at execve."""
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)


def apply(caps: Capabilities, also: int = 0) -> None:
    """Put the sets in force; `also` stays permitted and effective on top, until the next call."""
    syscalls.capset(caps.effective | also, caps.permitted | also, caps.inheritable)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in numbers(caps.ambient):
        syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)


def drop_extra(caps: Capabilities) -> None:
    """Give up what apply() left on top; one system call, so that a seccomp filter need allow no more."""
    syscalls.capset(caps.effective, caps.permitted, caps.inheritable)


def numbers(bits: int) -> Sequence[int]:
    """The capability numbers in a mask."""
    return [number for number in range(bits.bit_length()) if bits >> number & 1]
