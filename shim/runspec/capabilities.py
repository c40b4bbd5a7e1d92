"""Which capabilities a container of `hako run` has. Pure.

Owns: Docker's default set and how --cap-add and --cap-drop change it. Must not know: the guest. Called by
spec.py and, for `hako exec --user`, by users' callers.
"""

from __future__ import annotations

from collections.abc import Sequence

from shim.errors import InvalidSpec

# linux/capability.h, in the order of their numbers
ALL = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT",
    "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE",
    "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN",
    "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip

# Docker's fourteen: CapEff 00000000a80425fb
DEFAULT = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
)  # fmt: skip

EVERYTHING = "ALL"


def choose(add: Sequence[str], drop: Sequence[str]) -> list[str]:
    """The set after --cap-add and --cap-drop, by Docker's rules. Raises InvalidSpec for an unknown name.

    --cap-add ALL: all but the dropped; --cap-drop ALL: only the added; else the default less the dropped,
    and the added, which win.
    """
    added = {_name(text, "--cap-add") for text in add}
    dropped = {_name(text, "--cap-drop") for text in drop}
    if EVERYTHING in added:
        chosen = set(ALL) - dropped
    elif EVERYTHING in dropped:
        chosen = added
    else:
        chosen = (set(DEFAULT) - dropped) | added
    return [name for name in ALL if name in chosen]


def _name(text: str, option: str) -> str:
    """`net_admin` and `CAP_NET_ADMIN` are the same."""
    upper = text.upper()
    name = upper if upper.startswith("CAP_") or upper == EVERYTHING else f"CAP_{upper}"
    if name != EVERYTHING and name not in ALL:
        raise InvalidSpec(option, f"there is no capability {text!r}")
    return name


def sets(bounding: Sequence[str], uid: int) -> dict[str, list[str]]:
    """The OCI process.capabilities: another user than root gets none but those that its programs' files
    bring, which is what execve(2) would leave it anyway.
    """
    names = list(bounding)
    return {"bounding": names, "effective": names, "permitted": names} if uid == 0 else {"bounding": names}
