"""Compile an OCI seccomp profile to a classic BPF filter and install it.

Owns: the meaning of LinuxSeccomp (actions, architectures, arguments, unknown names). Knows nothing of
containers or of processes. Called by agent.container: compile() in the agent before the fork, install() in
the child.

The filter finds the call's outcome by binary search over ranges of call numbers with equal outcome. Where
OCI is silent it does what runc with libseccomp does (read from their documentation and checked against
libseccomp by tests/component/test_seccomp_oracle.py):
- a rule with the default action is dropped; a rule without arguments beats rules with arguments for the
  same call;
- an entry that tests one argument more than once means OR of its tests, not AND;
- a call number above every number that the profile names answers ENOSYS where the default action refuses,
  so that libc falls back from calls which are newer than the profile;
- calls by another architecture's convention than those listed end the process.
"""

from __future__ import annotations

import errno

from agent.errors import InvalidSpec
from agent.linux import classic_bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable, Mapping

    from agent.api import oci_pb2

    Test = tuple[int, str, int, int]  # argument index, operator, value, second value
    Rule = tuple[tuple[Test, ...], int]  # tests that must all hold, action
    Outcome = int | tuple[Rule, ...]  # an action, or rules of which the first that holds gives the action

# linux/audit.h
AUDIT_ARCH_X86_64 = 0xC000003E
AUDIT_ARCH_I386 = 0x40000003
X32_BIT = 0x40000000
# struct seccomp_data: nr, arch, instruction_pointer, args[6]
OFFSET_NR, OFFSET_ARCH, OFFSET_ARGS = 0, 4, 16

# linux/seccomp.h
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000
TRACE = 0x7FF00000
ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_TRACE": TRACE,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
SPEC_ALLOW = 4
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": SPEC_ALLOW,
    # Only means something together with a notification listener, which is refused; alone the kernel answers
    # EINVAL.
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 0,
}
SET_MODE_FILTER = 1

# The containers of a pod mostly have one profile, and compiling one costs 2 ms (20 in an emulated guest).
_compiled: dict[bytes, bytes] = {}
_MAX_COMPILED = 8

NATIVE, COMPAT, X32 = "SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"
# libseccomp's names of machines that cannot occur in an x86 guest: accepted, without effect.
FOREIGN = frozenset(
    "SCMP_ARCH_" + name
    for name in (
        "ARM", "AARCH64", "MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64", "MIPSEL64N32", "PPC", "PPC64",
        "PPC64LE", "S390", "S390X", "PARISC", "PARISC64", "RISCV64", "LOONGARCH64", "M68K", "SH", "SHEB",
    )
)  # fmt: skip
OPERATORS = frozenset("SCMP_CMP_" + name for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))

# i386 programs reach these calls also through socketcall(2) and ipc(2): linux/net.h, linux/ipc.h.
SOCKETCALL = {
    "socket": 1, "bind": 2, "connect": 3, "listen": 4, "accept": 5, "getsockname": 6, "getpeername": 7,
    "socketpair": 8, "send": 9, "recv": 10, "sendto": 11, "recvfrom": 12, "shutdown": 13, "setsockopt": 14,
    "getsockopt": 15, "sendmsg": 16, "recvmsg": 17, "accept4": 18, "recvmmsg": 19, "sendmmsg": 20,
}  # fmt: skip
IPC = {
    "semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12, "msgget": 13,
    "msgctl": 14, "shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24,
}  # fmt: skip


def compile(config: oci_pb2.LinuxSeccomp) -> bytes:
    """The filter as an array of struct sock_filter. Raises InvalidSpec for what cannot be enforced."""
    key = config.SerializeToString()
    program = _compiled.get(key)
    if program is None:
        program = _compile(config)
        if len(_compiled) >= _MAX_COMPILED:
            _compiled.clear()
        _compiled[key] = program
    return program


def _compile(config: oci_pb2.LinuxSeccomp) -> bytes:
    if config.ListenerPath:
        raise InvalidSpec(
            "linux.seccomp.listenerPath", "notification listeners are not supported in the guest"
        )
    entries, default = _entries(config)
    wanted = _architectures(config.Architectures)
    newer = default if config.DefaultAction in PERMISSIVE else ERRNO | errno.ENOSYS
    code = classic_bpf.Assembler()
    kill = code.give(KILL_PROCESS)
    compat = (
        _section(code, *_compat_calls(entries, default, newer), default, -1) if COMPAT in wanted else kill
    )
    native_calls = _native_calls(entries, default, newer, with_x32=X32 in wanted)
    native = _section(code, *native_calls, default, X32_BIT - 1)
    not_native = code.jump(classic_bpf.JUMP_EQUAL, AUDIT_ARCH_I386, compat, kill)
    code.jump(classic_bpf.JUMP_EQUAL, AUDIT_ARCH_X86_64, native, not_native)
    code.load(OFFSET_ARCH)
    if len(code) > classic_bpf.MAX_INSTRUCTIONS:
        reason = f"the filter has {len(code)} instructions, the kernel takes {classic_bpf.MAX_INSTRUCTIONS}"
        raise InvalidSpec("linux.seccomp.syscalls", reason)
    return code.assemble()


def flags(config: oci_pb2.LinuxSeccomp) -> int:
    """Flags for install(). None listed means SPEC_ALLOW, as in runc. Raises InvalidSpec for an unknown one.
    """
    unknown = [name for name in config.Flags if name not in FLAGS]
    if unknown:
        raise InvalidSpec("linux.seccomp.flags", f"unknown flag {unknown[0]}")
    bits = 0 if config.Flags else SPEC_ALLOW
    for name in config.Flags:
        bits |= FLAGS[name]
    return bits


def install(program: bytes, bits: int) -> None:
    """Put this thread under the filter; needs no_new_privs or CAP_SYS_ADMIN. Raises OSError."""
    from agent.linux import syscalls

    syscalls.seccomp(SET_MODE_FILTER, bits, program)


# --- the profile as rules ---------------------------------------------------------------------------------


def _action(name: str, errno_ret: int | None, field: str) -> int:
    if name == "SCMP_ACT_NOTIFY":
        raise InvalidSpec(field, "SCMP_ACT_NOTIFY needs a listener, which is not supported in the guest")
    if name not in ACTIONS:
        raise InvalidSpec(field, f"unknown action {name!r}")
    action = ACTIONS[name]
    if action in (ERRNO, TRACE):
        action |= (errno.EPERM if errno_ret is None else errno_ret) & 0xFFFF
    return action


def _entries(config: oci_pb2.LinuxSeccomp) -> tuple[list[tuple[list[str], tuple[Rule, ...]]], int]:
    """(names, rules) of each entry, and the default action. No rules: an entry that only repeats the
    default.
    """
    default_errno = config.DefaultErrnoRet if config.HasField("DefaultErrnoRet") else None
    default = _action(config.DefaultAction, default_errno, "linux.seccomp.defaultAction")
    entries = []
    for index, entry in enumerate(config.Syscalls):
        field = f"linux.seccomp.syscalls[{index}]"
        if not entry.Names:
            raise InvalidSpec(f"{field}.names", "is empty")
        errno_ret = entry.errnoret if entry.HasField("errnoret") else None
        action = _action(entry.Action, errno_ret, f"{field}.action")
        tests = [_test(arg, field) for arg in entry.Args]
        entries.append((list(entry.Names), () if action == default else _alternatives(tests, action)))
    return entries, default


def _test(arg: oci_pb2.LinuxSeccompArg, field: str) -> Test:
    if arg.Index > 5:
        raise InvalidSpec(f"{field}.args", f"argument index {arg.Index} is above 5")
    if arg.Op not in OPERATORS:
        raise InvalidSpec(f"{field}.args", f"unknown operator {arg.Op!r}")
    return arg.Index, arg.Op, arg.Value, arg.ValueTwo


def _alternatives(tests: list[Test], action: int) -> tuple[Rule, ...]:
    if len({test[0] for test in tests}) < len(tests):
        return tuple([((test,), action) for test in tests])
    return ((tuple(tests), action),)


def _architectures(names: Iterable[str]) -> set[str]:
    wanted = {NATIVE}
    for name in names:
        if name not in (NATIVE, COMPAT, X32) and name not in FOREIGN:
            raise InvalidSpec("linux.seccomp.architectures", f"unknown architecture {name!r}")
        wanted.add(name)
    return wanted


# --- rules by call number ---------------------------------------------------------------------------------


class _Calls:
    """Rules collected by call number of one calling convention."""

    __slots__ = ("by_number", "highest")

    def __init__(self) -> None:
        self.by_number: dict[int, list[Rule]] = {}
        self.highest = -1

    def add(self, number: int, rules: tuple[Rule, ...]) -> None:
        if number > self.highest:
            self.highest = number
        if rules:
            self.by_number.setdefault(number, []).extend(rules)

    def outcomes(self) -> dict[int, Outcome]:
        return {number: _outcome(rules) for number, rules in self.by_number.items()}


def _outcome(rules: list[Rule]) -> Outcome:
    for tests, action in rules:
        if not tests:
            return action
    return tuple(rules)


def _collect(
    entries: list[tuple[list[str], tuple[Rule, ...]]], numbers: Mapping[str, int], bit: int = 0
) -> _Calls:
    calls = _Calls()
    for names, rules in entries:
        for name in names:
            number = numbers.get(name, -1)
            if number >= 0:
                calls.add(number | bit, rules)
    return calls


def _native_calls(
    entries: list[tuple[list[str], tuple[Rule, ...]]], default: int, newer: int, *, with_x32: bool
) -> tuple[dict[int, Outcome], list[tuple[int, int]]]:
    """Outcomes by number, and (first number, action) of what is not listed, for x86_64 and x32, which share
    a range.
    """
    from agent.linux import syscall_numbers

    calls = _collect(entries, syscall_numbers.X86_64)
    outcomes, unlisted = calls.outcomes(), [(0, default), (calls.highest + 1, newer), (X32_BIT, KILL_PROCESS)]
    if with_x32:
        x32 = _collect(entries, syscall_numbers.X86_64 | syscall_numbers.X32_DIFFERENT, X32_BIT)
        outcomes.update(x32.outcomes())
        unlisted[2:] = [(X32_BIT, default), (max(X32_BIT, x32.highest + 1), newer)]
    # -1 is what a tracer leaves to skip a call.
    return outcomes, [*unlisted, (0xFFFFFFFF, default)]


def _compat_calls(
    entries: list[tuple[list[str], tuple[Rule, ...]]], default: int, newer: int
) -> tuple[dict[int, Outcome], list[tuple[int, int]]]:
    from agent.linux.syscall_numbers import I386

    calls = _collect(entries, I386)
    for names, rules in entries:
        for name in names:
            _add_multiplexed(calls, name, rules, I386)
    return calls.outcomes(), [(0, default), (calls.highest + 1, newer), (0xFFFFFFFF, default)]


def _add_multiplexed(calls: _Calls, name: str, rules: tuple[Rule, ...], i386: Mapping[str, int]) -> None:
    """Let a rule without arguments hold for socketcall(2) and ipc(2) too; their own arguments lie behind a
    pointer.
    """
    for multiplexer, numbers, mask in (("socketcall", SOCKETCALL, 0xFFFFFFFF), ("ipc", IPC, 0xFFFF)):
        if name in numbers:
            test = (0, "SCMP_CMP_MASKED_EQ", mask, numbers[name])
            bare = tuple([((test,), action) for tests, action in rules if not tests])
            calls.add(i386[multiplexer], bare)


# --- code -------------------------------------------------------------------------------------------------


def _section(
    code: classic_bpf.Assembler,
    outcomes: dict[int, Outcome],
    unlisted: list[tuple[int, int]],
    default: int,
    widest: int,
) -> int:
    """Write one architecture's part; returns its label. Calls numbered above `widest` have 32-bit
    arguments.
    """
    targets: dict[tuple[Outcome, bool], int] = {}
    leaves = []
    for first, outcome in _ranges(outcomes, unlisted):
        if isinstance(outcome, int):
            leaves.append((first, outcome, -1))
            continue
        key = (outcome, first <= widest)
        if key not in targets:
            targets[key] = _block(code, outcome, default, wide=first <= widest)
        leaves.append((first, 0, targets[key]))
    code.continue_at(_tree(code, leaves))
    return code.load(OFFSET_NR)


def _ranges(outcomes: dict[int, Outcome], unlisted: list[tuple[int, int]]) -> list[tuple[int, Outcome]]:
    """[(first number, outcome)] ascending, each up to the next one's first number, neighbours different."""
    starts: dict[int, Outcome] = {}
    for first, action in unlisted:
        starts[first] = action
    edges = sorted({*outcomes, *[number + 1 for number in outcomes], *starts} - {1 << 32})
    ranges: list[tuple[int, Outcome]] = []
    background: Outcome = 0
    for edge in edges:
        background = starts.get(edge, background)
        outcome = outcomes.get(edge, background)
        if not ranges or ranges[-1][1] != outcome:
            ranges.append((edge, outcome))
    return ranges


def _tree(code: classic_bpf.Assembler, leaves: list[tuple[int, int, int]]) -> int:
    """Binary search over (first number, action, label of a block or -1 for the bare action)."""
    if len(leaves) == 1:
        _, action, label = leaves[0]
        return code.give(action) if label < 0 else label
    middle = len(leaves) // 2
    right = _tree(code, leaves[middle:])
    left = _tree(code, leaves[:middle])
    return code.jump(classic_bpf.JUMP_GREATER_OR_EQUAL, leaves[middle][0], right, left)


def _block(code: classic_bpf.Assembler, rules: tuple[Rule, ...], default: int, *, wide: bool) -> int:
    """Code that tries `rules` in order; returns its label."""
    otherwise = code.give(default)
    for tests, action in reversed(rules):
        then = code.give(action)
        for test in reversed(tests):
            then = _compare(code, test, then, otherwise, wide=wide)
        otherwise = then
    return otherwise


def _compare(code: classic_bpf.Assembler, test: Test, yes: int, no: int, *, wide: bool) -> int:
    """One test of an argument; 32-bit callers (not wide) have no upper half."""
    index, operator, value, second = test
    if operator == "SCMP_CMP_MASKED_EQ":
        # OCI: value is the mask, valueTwo the value; bits outside of the mask do not matter.
        return _compare_equal(code, index, value, second & value, yes, no, wide=wide)
    if operator == "SCMP_CMP_EQ":
        return _compare_equal(code, index, 0xFFFFFFFFFFFFFFFF, value, yes, no, wide=wide)
    if operator == "SCMP_CMP_NE":
        return _compare_equal(code, index, 0xFFFFFFFFFFFFFFFF, value, no, yes, wide=wide)
    if operator == "SCMP_CMP_GT":
        return _compare_order(code, index, value, classic_bpf.JUMP_GREATER, yes, no, wide=wide)
    if operator == "SCMP_CMP_GE":
        return _compare_order(code, index, value, classic_bpf.JUMP_GREATER_OR_EQUAL, yes, no, wide=wide)
    if operator == "SCMP_CMP_LE":
        return _compare_order(code, index, value, classic_bpf.JUMP_GREATER, no, yes, wide=wide)
    return _compare_order(code, index, value, classic_bpf.JUMP_GREATER_OR_EQUAL, no, yes, wide=wide)


def _compare_equal(
    code: classic_bpf.Assembler, index: int, mask: int, value: int, yes: int, no: int, *, wide: bool
) -> int:
    low = _half_equal(code, OFFSET_ARGS + 8 * index, mask & 0xFFFFFFFF, value & 0xFFFFFFFF, yes, no)
    if not wide or (mask >> 32 == 0 and value >> 32 == 0):
        return low
    return _half_equal(code, OFFSET_ARGS + 8 * index + 4, mask >> 32, value >> 32, low, no)


def _half_equal(code: classic_bpf.Assembler, offset: int, mask: int, value: int, yes: int, no: int) -> int:
    code.jump(classic_bpf.JUMP_EQUAL, value, yes, no)
    if mask != 0xFFFFFFFF:
        code.mask(mask)
    return code.load(offset)


def _compare_order(
    code: classic_bpf.Assembler, index: int, value: int, operator: int, yes: int, no: int, *, wide: bool
) -> int:
    low, high = OFFSET_ARGS + 8 * index, OFFSET_ARGS + 8 * index + 4
    code.jump(operator, value & 0xFFFFFFFF, yes, no)
    lower_half = code.load(low)
    if not wide:
        return lower_half
    equal = code.jump(classic_bpf.JUMP_EQUAL, value >> 32, lower_half, no)
    code.jump(classic_bpf.JUMP_GREATER, value >> 32, yes, equal)
    return code.load(high)
