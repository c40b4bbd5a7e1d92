"""What of this host goes into a VM: its size, the user that VMMs run as, a UUID.

Owns: those answers. Must not know: pods, VMMs. Called by builder.py and templatebuild.py.
"""

from __future__ import annotations

import os
import pwd

from shim.sandbox.plan import HostLimits

FALLBACK_USER = "nobody"


def limits() -> HostLimits:
    """CPUs and memory of this host."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return HostLimits(os.cpu_count() or 1, pages * size >> 20)


def user_ids(name: str) -> tuple[int, int]:
    """uid and gid of the unprivileged user; of "nobody" where there is no such user."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        entry = pwd.getpwnam(FALLBACK_USER)
    return entry.pw_uid, entry.pw_gid


def random_uuid() -> str:
    """A UUID of version 4 from the kernel; the uuid module takes longer to load than this to read."""
    with open("/proc/sys/kernel/random/uuid", encoding="ascii") as stream:
        return stream.read().strip()
