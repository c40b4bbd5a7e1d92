"""agent/seccomp.py: what the compiled filter answers, and what is refused."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from agent import seccomp
from agent.api import jsonmap, oci_pb2
from agent.errors import InvalidSpec
from agent.linux import syscall_numbers as numbers
from shim.runspec.seccomp import load, resolve
from tests.framework import bpf_machine
from tests.framework.bpf_machine import Call

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
NATIVE, COMPAT = seccomp.AUDIT_ARCH_X86_64, seccomp.AUDIT_ARCH_I386


def message(profile: dict[str, Any]) -> oci_pb2.LinuxSeccomp:
    """The profile as the agent gets it."""
    config = oci_pb2.LinuxSeccomp()
    jsonmap.fill(config, profile)
    return config


class Filter:
    """A compiled profile that can be asked."""

    def __init__(self, default: str = "SCMP_ACT_ERRNO", *syscalls: dict[str, Any], **profile: Any) -> None:
        config = message({"defaultAction": default, "syscalls": list(syscalls), **profile})
        self.program = bpf_machine.decode(seccomp.compile(config))

    def native(self, name: str, *args: int) -> int:
        """Answer to an x86_64 call."""
        return self.number(numbers.X86_64[name], *args)

    def number(self, number: int, *args: int, arch: int = NATIVE) -> int:
        """Answer to a call by number."""
        padded = (*args, *[0] * (6 - len(args)))
        return bpf_machine.run(self.program, Call(number, arch, padded))

    def compat(self, name: str, *args: int) -> int:
        """Answer to an i386 call."""
        return self.number(numbers.I386[name], *args, arch=COMPAT)


def rule(names: str, action: str = "SCMP_ACT_ALLOW", *args: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One entry of `syscalls`."""
    return {"names": names.split(), "action": action, "args": list(args), **more}


def arg(operator: str, value: int, two: int = 0, index: int = 0) -> dict[str, Any]:
    """One entry of `args`."""
    return {"index": index, "value": value, "valueTwo": two, "op": f"SCMP_CMP_{operator}"}


@pytest.mark.parametrize(
    ("action", "value"),
    [
        ("SCMP_ACT_KILL", 0),
        ("SCMP_ACT_KILL_THREAD", 0),
        ("SCMP_ACT_KILL_PROCESS", KILL_PROCESS),
        ("SCMP_ACT_TRAP", 0x00030000),
        ("SCMP_ACT_ERRNO", 0x00050000 | errno.EPERM),
        ("SCMP_ACT_TRACE", 0x7FF00000 | errno.EPERM),
        ("SCMP_ACT_LOG", 0x7FFC0000),
    ],
)
def test_action_of_a_named_call(action: str, value: int) -> None:
    """Each OCI action has its kernel value; ERRNO and TRACE carry EPERM where nothing is given."""
    assert Filter("SCMP_ACT_ALLOW", rule("getpid", action)).native("getpid") == value


def test_errno_of_rule_and_of_default() -> None:
    """errnoRet and defaultErrnoRet are returned, 0 included."""
    probe = Filter(
        "SCMP_ACT_ERRNO", rule("getpid", "SCMP_ACT_ERRNO", errnoRet=0), rule("write"), defaultErrnoRet=38
    )
    assert probe.native("getpid") == 0x00050000
    assert probe.native("read") == 0x00050000 | 38


@pytest.mark.parametrize(
    ("operator", "value", "two", "hits", "misses"),
    [
        ("EQ", 5, 0, (5,), (4, 6, 5 | 1 << 32)),
        ("EQ", 5 << 32, 0, (5 << 32,), (0, 5, 5 << 32 | 1)),
        ("NE", 5, 0, (4, 5 | 1 << 32), (5,)),
        ("GT", 1 << 32, 0, (1 << 32 | 1, 1 << 33), (1 << 32, 0xFFFFFFFF, 0)),
        ("GE", 1 << 32, 0, (1 << 32, 1 << 32 | 1, 1 << 63), (0xFFFFFFFF, 0)),
        ("LT", 1 << 32, 0, (0, 0xFFFFFFFF), (1 << 32, 1 << 33)),
        ("LE", 1 << 32 | 7, 0, (0, 1 << 32 | 7), (1 << 32 | 8, 2 << 32)),
        ("MASKED_EQ", 0xF0, 0x50, (0x50, 0x5F, 0xF00000000050), (0x60, 0)),
        ("MASKED_EQ", 0xF << 32, 0x5 << 32, (0x5 << 32 | 99, 0x15 << 32), (5, 0x6 << 32)),
        ("MASKED_EQ", 0xF0, 0x53, (0x50,), (0x60,)),
    ],
)
def test_operators_compare_64_bits(
    operator: str, value: int, two: int, hits: tuple[int, ...], misses: tuple[int, ...]
) -> None:
    """Every operator looks at both halves of the argument."""
    probe = Filter("SCMP_ACT_ERRNO", rule("ioctl", "SCMP_ACT_ALLOW", arg(operator, value, two, index=1)))
    assert [probe.native("ioctl", 0, hit) for hit in hits] == [ALLOW] * len(hits)
    assert all(probe.native("ioctl", 0, miss) != ALLOW for miss in misses)


def test_arguments_of_one_entry_must_all_hold() -> None:
    """Several arguments in one entry mean AND."""
    probe = Filter("SCMP_ACT_ERRNO", rule("socket", "SCMP_ACT_ALLOW", arg("EQ", 2), arg("EQ", 1, index=1)))
    assert probe.native("socket", 2, 1) == ALLOW
    assert probe.native("socket", 2, 2) != ALLOW
    assert probe.native("socket", 1, 1) != ALLOW


def test_entries_of_one_call_are_alternatives() -> None:
    """Several entries for one call mean OR."""
    probe = Filter(
        "SCMP_ACT_ERRNO",
        rule("socket", "SCMP_ACT_ALLOW", arg("EQ", 1)),
        rule("socket", "SCMP_ACT_TRAP", arg("EQ", 2)),
    )
    assert [probe.native("socket", n) for n in (1, 2, 3)] == [ALLOW, 0x00030000, 0x00050001]


def test_one_argument_tested_twice_means_or() -> None:
    """As runc does it: an entry that tests an argument twice is one rule per test."""
    probe = Filter("SCMP_ACT_ERRNO", rule("personality", "SCMP_ACT_ALLOW", arg("EQ", 0), arg("EQ", 8)))
    assert [probe.native("personality", n) for n in (0, 8, 4)] == [ALLOW, ALLOW, 0x00050001]


def test_rule_without_arguments_beats_rule_with() -> None:
    """The more general rule for a call wins, whatever the order."""
    general, special = rule("socket"), rule("socket", "SCMP_ACT_TRAP", arg("EQ", 40))
    for rules in ((general, special), (special, general)):
        assert Filter("SCMP_ACT_ERRNO", *rules).native("socket", 40) == ALLOW


def test_unknown_names_are_ignored() -> None:
    """A profile may name calls of other machines and of the future."""
    probe = Filter("SCMP_ACT_ERRNO", rule("not_a_call s390_pci_mmio_read getpid"))
    assert probe.native("getpid") == ALLOW


def test_calls_newer_than_the_profile_answer_enosys() -> None:
    """A number above all that are named is ENOSYS under a refusing default, so that libc falls back."""
    probe = Filter("SCMP_ACT_ERRNO", rule("getpid"), rule("clone3", "SCMP_ACT_ERRNO"))
    assert probe.number(numbers.X86_64["clone3"]) == 0x00050000 | errno.EPERM
    assert probe.number(numbers.X86_64["clone3"] + 1) == 0x00050000 | errno.ENOSYS
    assert Filter("SCMP_ACT_LOG", rule("getpid")).number(2000) == 0x7FFC0000


def test_other_architectures_end_the_process() -> None:
    """A 32-bit, x32 or foreign call is fatal unless its architecture is listed."""
    probe = Filter("SCMP_ACT_ALLOW", rule("getpid", "SCMP_ACT_ERRNO"))
    assert probe.compat("getpid") == KILL_PROCESS
    assert probe.number(numbers.X86_64["getpid"] | seccomp.X32_BIT) == KILL_PROCESS
    assert probe.number(172, arch=0xC00000B7) == KILL_PROCESS
    assert probe.number(0xFFFFFFFF) == ALLOW


def test_listed_architectures_use_their_own_numbers() -> None:
    """x86 and x32 have their own call numbers."""
    probe = Filter(
        "SCMP_ACT_ERRNO",
        rule("getpid ioctl"),
        architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"],
    )
    assert probe.compat("getpid") == ALLOW
    assert probe.number(numbers.X86_64["getpid"], arch=COMPAT) != ALLOW
    assert probe.number(514 | seccomp.X32_BIT) == ALLOW  # x32's own ioctl
    assert probe.number(numbers.X86_64["ioctl"] | seccomp.X32_BIT) != ALLOW


def test_32_bit_calls_compare_the_lower_half() -> None:
    """A 32-bit caller's argument has no upper half: -1 written as 64 bits still matches."""
    probe = Filter(
        "SCMP_ACT_ERRNO",
        rule("kill", "SCMP_ACT_ALLOW", arg("EQ", (1 << 64) - 1)),
        architectures=["SCMP_ARCH_X86"],
    )
    assert probe.compat("kill", 0xFFFFFFFF) == ALLOW
    assert probe.native("kill", 0xFFFFFFFF) != ALLOW


def test_socketcall_and_ipc_follow_the_calls_they_carry() -> None:
    """An i386 socket() by socketcall(2) is judged like socket(2)."""
    probe = Filter("SCMP_ACT_ERRNO", rule("socket shmget"), architectures=["SCMP_ARCH_X86"])
    assert probe.compat("socketcall", 1) == ALLOW
    assert probe.compat("socketcall", 2) != ALLOW
    assert probe.compat("ipc", 23 | 1 << 16) == ALLOW
    assert probe.compat("ipc", 24) != ALLOW


@pytest.mark.parametrize(
    ("profile", "field"),
    [
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "linux.seccomp.defaultAction"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}, "linux.seccomp.listenerPath"),
        ({"defaultAction": "ALLOW"}, "linux.seccomp.defaultAction"),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"]},
            "linux.seccomp.architectures",
        ),
        (
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [rule("read", "SCMP_ACT_ERRNO", arg("EQ", 1, index=6))],
            },
            "linux.seccomp.syscalls[0].args",
        ),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("read"), rule("", "SCMP_ACT_ERRNO")]},
            "linux.seccomp.syscalls[1].names",
        ),
        (
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [rule("read", "SCMP_ACT_ERRNO", arg("NEARLY", 1))],
            },
            "linux.seccomp.syscalls[0].args",
        ),
    ],
)
def test_what_cannot_be_enforced_is_refused(profile: dict[str, Any], field: str) -> None:
    """An unenforceable profile is an error that names the field, never a weaker filter."""
    with pytest.raises(InvalidSpec) as refused:
        seccomp.compile(message(profile))
    assert refused.value.field == field


def test_filter_beyond_the_kernels_limit_is_refused() -> None:
    """More than 4096 instructions cannot be installed."""
    rules = [rule("read", "SCMP_ACT_TRAP", arg("EQ", n << 32 | n)) for n in range(1100)]
    with pytest.raises(InvalidSpec, match="4096"):
        seccomp.compile(message({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))


def test_big_filter_within_the_limit_still_decides_right() -> None:
    """Programs with jumps beyond 255 instructions answer like small ones."""
    rules = [rule("read", "SCMP_ACT_TRAP", arg("EQ", n << 32 | n)) for n in range(800)]
    probe = Filter("SCMP_ACT_ALLOW", *rules, rule("getpid", "SCMP_ACT_ERRNO"))
    assert [probe.native("read", n << 32 | n) for n in (0, 1, 400, 799)] == [0x00030000] * 4
    assert [probe.native("read", 800 << 32 | 800), probe.native("getpid")] == [ALLOW, 0x00050001]


def test_flags_and_their_default() -> None:
    """No flag means SPEC_ALLOW as in runc; an unknown one is refused."""
    assert seccomp.flags(message({"defaultAction": "SCMP_ACT_ALLOW"})) == 4
    both = ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"]
    assert seccomp.flags(message({"defaultAction": "SCMP_ACT_ALLOW", "flags": both})) == 3
    with pytest.raises(InvalidSpec, match="NEW_LISTENER"):
        seccomp.flags(
            message({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]})
        )


def test_what_hako_run_allows_passes_without_the_filter() -> None:
    """The kernel proves of all calls but those with tested arguments that they are allowed, and asks no filter again."""
    profile = load("")
    assert profile is not None
    program = bpf_machine.decode(seccomp.compile(message(resolve(profile, (), "x86_64", (6, 1)))))
    for arch, table in ((NATIVE, numbers.X86_64), (COMPAT, numbers.I386)):
        allowed = [name for name, number in table.items() if bpf_machine.run(program, Call(number, arch)) == ALLOW]
        looked_at = {name for name in allowed if bpf_machine.looks_at_arguments(program, Call(table[name], arch))}
        assert len(allowed) > 300 and {"read", "write", "openat", "futex", "execve"} <= set(allowed) - looked_at
        assert looked_at <= {"clone", "personality", "socket", "socketcall"}
