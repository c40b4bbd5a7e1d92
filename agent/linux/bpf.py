"""The device program of a cgroup: eBPF that decides which device nodes its processes may open and make.

Owns: writing the program from a rule list, loading it and attaching it to a cgroup v2. Knows nothing of
OCI; agent/cgroups translates. Numbers and layouts: linux/bpf.h.

Semantics: each of the asked accesses (read, write, mknod) is judged alone, by the last rule that matches
the device and names that access; all must be allowed. Without any matching rule the answer is the default.
This is what the device cgroup of v1 does for lists that start with "deny all", and it leaves no way around
a later "deny write" by asking for read and write together.
"""

from __future__ import annotations

import errno
import os
import struct

from agent.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    # allow, kind of device, major, minor (-1: any), accesses
    Rule = tuple[bool, int, int, int, int]

# struct bpf_cgroup_dev_ctx: (access << 16 | kind), major, minor
ANY, BLOCK, CHARACTER = 0, 1, 2
MKNOD, READ, WRITE = 1, 2, 4
EVERY_ACCESS = MKNOD | READ | WRITE
ANY_NUMBER = -1

_PROG_LOAD, _PROG_ATTACH = 5, 8
_PROG_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6
_F_ALLOW_MULTI, _F_REPLACE = 2, 4
_LOG_SIZE = 1 << 16

# Operations on 32-bit halves of registers, with an immediate value where not said otherwise.
_LOAD_WORD, _MOVE_REGISTER, _MOVE, _SHIFT_RIGHT, _AND, _EXIT = 0x61, 0xBC, 0xB4, 0x74, 0x54, 0x95
_JUMP_EQUAL, _JUMP_NOT_EQUAL = 0x16, 0x56
_RESULT, _CONTEXT, _KIND, _WANTED, _MAJOR, _MINOR, _SCRATCH = 0, 1, 2, 3, 4, 5, 6


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhI", code, target | source << 4, offset, value & 0xFFFFFFFF)


def _verdict(allow: bool) -> bytes:
    return _instruction(_MOVE, _RESULT, value=int(allow)) + _instruction(_EXIT)


def device_program(rules: list[Rule], default: bool) -> bytes:
    """The program as an array of struct bpf_insn; the last matching rule wins."""
    code = [
        _instruction(_LOAD_WORD, _KIND, _CONTEXT, 0),
        _instruction(_MOVE_REGISTER, _WANTED, _KIND),
        _instruction(_SHIFT_RIGHT, _WANTED, value=16),
        _instruction(_AND, _KIND, value=0xFFFF),
        _instruction(_LOAD_WORD, _MAJOR, _CONTEXT, 4),
        _instruction(_LOAD_WORD, _MINOR, _CONTEXT, 8),
    ]
    for rule in reversed(rules):
        code.append(_rule_code(rule))
        if _decides_everything(rule):
            # The verifier refuses code that cannot be reached.
            return b"".join(code)
    return b"".join([*code, _verdict(default)])


def _decides_everything(rule: Rule) -> bool:
    _, kind, major, minor, access = rule
    return (kind, major, minor) == (ANY, ANY_NUMBER, ANY_NUMBER) and access == EVERY_ACCESS


def _rule_code(rule: Rule) -> bytes:
    allow, kind, major, minor, access = rule
    tests = []
    if kind != ANY:
        tests.append((_KIND, kind))
    if major != ANY_NUMBER:
        tests.append((_MAJOR, major))
    if minor != ANY_NUMBER:
        tests.append((_MINOR, minor))
    body = _judge(allow, access)
    past = len(tests) + len(body) // 8
    jumps = [
        _instruction(_JUMP_NOT_EQUAL, register, offset=past - index - 1, value=number)
        for index, (register, number) in enumerate(tests)
    ]
    return b"".join(jumps) + body


def _judge(allow: bool, access: int) -> bytes:
    """Code for a matching device: end with a verdict, or go on with the accesses that are still open."""
    if access == EVERY_ACCESS:
        return _verdict(allow)
    if allow:
        return (
            _instruction(_AND, _WANTED, value=EVERY_ACCESS & ~access)
            + _instruction(_JUMP_NOT_EQUAL, _WANTED, offset=2, value=0)
            + _verdict(True)  # noqa: FBT003 - the verdict is the value
        )
    return (
        _instruction(_MOVE_REGISTER, _SCRATCH, _WANTED)
        + _instruction(_AND, _SCRATCH, value=access)
        + _instruction(_JUMP_EQUAL, _SCRATCH, offset=2, value=0)
        + _verdict(False)  # noqa: FBT003 - the verdict is the value
    )


def load_device_program(program: bytes) -> int:
    """Load into the kernel; the program's descriptor. Raises OSError, with the verifier's words where it
    has.
    """
    licence = b"Apache-2.0\0"
    head = struct.pack(
        "=IIQQ", _PROG_TYPE_CGROUP_DEVICE, len(program) // 8, *map(syscalls.address, (program, licence))
    )
    attr = head + struct.pack("=IIQII16s", 0, 0, 0, 0, 0, b"hako_devices")
    try:
        return syscalls.bpf(_PROG_LOAD, attr)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
        raise OSError(
            error.errno, f"device program: {_verifier_log(head) or os.strerror(error.errno)}"
        ) from error


def _verifier_log(head: bytes) -> str:
    """What the verifier says about the program that `head` describes; "" where it says nothing."""
    log = bytearray(_LOG_SIZE)
    attr = head + struct.pack("=IIQII16s", 1, _LOG_SIZE, syscalls.address(log), 0, 0, b"hako_devices")
    try:
        os.close(syscalls.bpf(_PROG_LOAD, attr))
    except OSError:
        pass
    return log.split(b"\0", 1)[0].decode("ascii", "replace").strip()[-500:]


def attach_device_program(cgroup_fd: int, program_fd: int, replaces: int = -1) -> None:
    """Attach to the cgroup; with `replaces` (the descriptor of the one attached before) in its place, at
    once.

    Programs of the cgroups below come on top: an access needs the consent of all. Raises OSError.
    """
    flags = _F_ALLOW_MULTI if replaces < 0 else _F_ALLOW_MULTI | _F_REPLACE
    attr = struct.pack("=IIIII", cgroup_fd, program_fd, _ATTACH_CGROUP_DEVICE, flags, max(replaces, 0))
    syscalls.bpf(_PROG_ATTACH, attr)
