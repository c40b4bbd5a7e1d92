"""libseccomp by ctypes, driven the way runc drives it: the oracle for our own compiler.

Owns: turning an OCI seccomp profile into libseccomp calls and exporting the resulting filter. The rules of
this translation (what is skipped, what is split) are runc's, from its documentation and behaviour.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any

ARCHITECTURES = {"SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_X86": 0x40000003, "SCMP_ARCH_X32": 0x4000003E}
ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000, "SCMP_ACT_KILL_PROCESS": 0x80000000, "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_TRACE": 0x7FF00000, "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}  # fmt: skip
OPERATORS = {
    f"SCMP_CMP_{name}": number
    for number, name in enumerate(("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"), start=1)
}
ATTRIBUTE_BAD_ARCH = 2
EEXIST = 17


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


def load() -> ctypes.CDLL | None:
    """The library, or None where it is not installed (Debian: libseccomp2)."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    return library


def _action(name: str, errno_ret: int | None) -> int:
    action = ACTIONS[name]
    return action | (1 if errno_ret is None else errno_ret) if action in (0x00050000, 0x7FF00000) else action


def export(library: ctypes.CDLL, profile: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    """The filter that runc would install for `profile` (OCI JSON), without its ENOSYS stub."""
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    try:
        library.seccomp_attr_set(context, ATTRIBUTE_BAD_ARCH, ctypes.c_uint32(0x80000000))
        for name in profile.get("architectures", []):
            library.seccomp_arch_add(context, ctypes.c_uint32(ARCHITECTURES[name]))
        for entry in profile.get("syscalls", []):
            _add(library, context, entry, default)
        return _exported(library, context)
    finally:
        library.seccomp_release(context)


def _add(library: ctypes.CDLL, context: ctypes.c_void_p, entry: dict[str, Any], default: int) -> None:
    action = _action(entry["action"], entry.get("errnoRet"))
    if action == default:
        return
    tests = [Comparison(arg["index"], OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo", 0))
             for arg in entry.get("args", [])]  # fmt: skip
    indices = [test.arg for test in tests]
    groups = [[test] for test in tests] if len(set(indices)) < len(indices) else [tests]
    for name in entry["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            continue
        for group in groups:
            array = (Comparison * len(group))(*group)
            result = library.seccomp_rule_add_array(
                context, ctypes.c_uint32(action), number, len(group), array
            )
            if result not in (0, -EEXIST):
                raise OSError(-result, f"seccomp_rule_add {name}: {os.strerror(-result)}")


def _exported(library: ctypes.CDLL, context: ctypes.c_void_p) -> list[tuple[int, int, int, int]]:
    with open(os.memfd_create("filter"), "r+b") as file:
        result = library.seccomp_export_bpf(context, file.fileno())
        if result:
            raise OSError(-result, "seccomp_export_bpf")
        file.seek(0)
        return list(struct.iter_unpack("=HBBI", file.read()))
