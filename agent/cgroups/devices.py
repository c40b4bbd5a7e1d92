"""OCI device rules as rules of the cgroup's device program.

Owns: the meaning of `linux.resources.devices`, the devices that every container may use, the programs that are in the
kernel already. Called by agent/cgroups, and by agent.warm, which has the usual ones loaded.
"""

from __future__ import annotations

import os

from agent.api import oci_pb2
from agent.errors import InvalidSpec
from agent.linux import bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable

_KINDS = {"": bpf.ANY, "a": bpf.ANY, "b": bpf.BLOCK, "c": bpf.CHARACTER, "u": bpf.CHARACTER}
_ACCESSES = {"r": bpf.READ, "w": bpf.WRITE, "m": bpf.MKNOD}
_LARGEST_NUMBER = (1 << 32) - 1

# What OCI lists as default devices, pseudo-terminals, and making any node (which gives no access to it).
DEFAULT: tuple[bpf.Rule, ...] = (
    (True, bpf.CHARACTER, bpf.ANY_NUMBER, bpf.ANY_NUMBER, bpf.MKNOD),
    (True, bpf.BLOCK, bpf.ANY_NUMBER, bpf.ANY_NUMBER, bpf.MKNOD),
    (True, bpf.CHARACTER, 1, 3, bpf.EVERY_ACCESS),  # null
    (True, bpf.CHARACTER, 1, 5, bpf.EVERY_ACCESS),  # zero
    (True, bpf.CHARACTER, 1, 7, bpf.EVERY_ACCESS),  # full
    (True, bpf.CHARACTER, 1, 8, bpf.EVERY_ACCESS),  # random
    (True, bpf.CHARACTER, 1, 9, bpf.EVERY_ACCESS),  # urandom
    (True, bpf.CHARACTER, 5, 0, bpf.EVERY_ACCESS),  # tty
    (True, bpf.CHARACTER, 5, 2, bpf.EVERY_ACCESS),  # ptmx
    (True, bpf.CHARACTER, 136, bpf.ANY_NUMBER, bpf.EVERY_ACCESS),  # pts
)

_DENY_ALL: bpf.Rule = (False, bpf.ANY, bpf.ANY_NUMBER, bpf.ANY_NUMBER, bpf.EVERY_ACCESS)
LOADED_KEPT = 8
_loaded: dict[bytes, int] = {}


def usual() -> list[oci_pb2.LinuxDeviceCgroup]:
    """What engines and `hako run` allow beside the default: the console."""
    return [oci_pb2.LinuxDeviceCgroup(Allow=True, Type="c", Major=5, Minor=1, Access="rwm")]


def program(devices: Iterable[oci_pb2.LinuxDeviceCgroup]) -> bytes:
    """The device program for OCI's list: everything is denied that no rule allows. Raises InvalidSpec.

    Lists that say the same in another order have the same one, if they do nothing but allow.
    """
    wanted = [*rules(devices), *DEFAULT]
    since = max((index + 1 for index, rule in enumerate(wanted) if rule == _DENY_ALL), default=0)
    if all(rule[0] for rule in wanted[since:]):
        wanted = sorted(set(wanted[since:]))
    return bpf.device_program(wanted, default=False)


def load(code: bytes) -> int:
    """A descriptor of that program in the kernel, the caller's to close. Raises OSError.

    Most containers have the same few; the kernel's verifier takes longer than everything else about a cgroup.
    """
    if code not in _loaded:
        fd = bpf.load_device_program(code)
        if len(_loaded) >= LOADED_KEPT:
            os.close(_loaded.pop(next(iter(_loaded))))
        _loaded[code] = fd
    return os.dup(_loaded[code])


def rules(devices: Iterable[oci_pb2.LinuxDeviceCgroup]) -> list[bpf.Rule]:
    """OCI's list in its order; an absent or negative number and an empty access mean all."""
    return [_rule(device, f"linux.resources.devices[{index}]") for index, device in enumerate(devices)]


def _rule(device: oci_pb2.LinuxDeviceCgroup, field: str) -> bpf.Rule:
    if device.Type not in _KINDS:
        raise InvalidSpec(f"{field}.type", f"{device.Type!r} is not one of a, b, c")
    access = 0
    for letter in device.Access or "rwm":
        if letter not in _ACCESSES:
            raise InvalidSpec(f"{field}.access", f"{device.Access!r} has other letters than r, w, m")
        access |= _ACCESSES[letter]
    major = device.Major if device.HasField("Major") else bpf.ANY_NUMBER
    minor = device.Minor if device.HasField("Minor") else bpf.ANY_NUMBER
    if max(major, minor) > _LARGEST_NUMBER:
        raise InvalidSpec(field, "a device number does not fit 32 bits")
    return device.Allow, _KINDS[device.Type], max(major, bpf.ANY_NUMBER), max(minor, bpf.ANY_NUMBER), access
