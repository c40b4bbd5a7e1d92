"""Compiled filters under the real kernel: installed in a forked child that then makes the calls."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from agent import seccomp
from agent.api import jsonmap, oci_pb2
from agent.linux import syscalls
from agent.linux.syscall_numbers import I386, X86_64
from tests.framework import forked

Result = TypeVar("Result")
LIBC = ctypes.CDLL(None, use_errno=True)
BOTH = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]


def call(name: str, *args: int) -> int:
    """errno of an x86_64 call, 0 where it succeeded."""
    ctypes.set_errno(0)
    longs = [ctypes.c_long(value - (1 << 64) if value >> 63 else value) for value in args]
    result = LIBC.syscall(ctypes.c_long(X86_64[name]), *longs)
    return ctypes.get_errno() if result == -1 else 0


def call_32(number: int, first: int = 0) -> int:
    """Result of an i386 system call by int 0x80, as the kernel returns it (negative errno)."""
    # push rbx; mov eax, number; mov ebx, first; int 0x80; pop rbx; ret
    code = b"\x53\xb8" + number.to_bytes(4, "little") + b"\xbb" + first.to_bytes(4, "little")
    code += b"\xcd\x80\x5b\xc3"
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


def under(profile: dict[str, Any], function: Callable[[], Result]) -> Result:
    """`function()` in a child under the profile, which the parent compiled."""
    config = oci_pb2.LinuxSeccomp()
    jsonmap.fill(config, profile)
    program, flags = seccomp.compile(config), seccomp.flags(config)

    def child() -> Result:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.install(program, flags)
        return function()

    return forked.run(child)


def profile(action: str, names: str, *args: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Everything allowed but `names`."""
    entry = {"names": names.split(), "action": action, "args": list(args), **more}
    return {"defaultAction": "SCMP_ACT_ALLOW", "architectures": BOTH, "syscalls": [entry]}


def test_errno_action_fails_only_the_named_call() -> None:
    """ERRNO answers the given errno; other calls go on."""
    probe = profile("SCMP_ACT_ERRNO", "getppid mkdirat", errnoRet=errno.ENOTTY)
    assert under(probe, lambda: (call("getppid"), call("getpid"))) == (errno.ENOTTY, 0)


def test_allow_list_permits_exactly_its_calls() -> None:
    """A refusing default with an allow list lets that list through and refuses the rest with its errno."""
    names = "read write close exit_group rt_sigreturn rt_sigaction mmap munmap brk futex madvise getpid mseal"
    allowed = {"names": names.split(), "action": "SCMP_ACT_ALLOW"}
    probe = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno.ENOTTY, "syscalls": [allowed]}
    assert under(probe, lambda: (call("getpid"), call("getppid"))) == (0, errno.ENOTTY)


def test_calls_above_the_profile_answer_enosys() -> None:
    """A call that the profile cannot know fails with ENOSYS, not EPERM."""
    names = [name for name, number in X86_64.items() if number <= X86_64["openat2"]]
    probe = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]}
    assert under(probe, lambda: call("mseal")) == errno.ENOSYS


@pytest.mark.parametrize(
    ("test", "value", "refused"),
    [
        ({"op": "SCMP_CMP_EQ", "value": 40}, 40, True),
        ({"op": "SCMP_CMP_EQ", "value": 40}, 41, False),
        ({"op": "SCMP_CMP_EQ", "value": 1 << 40 | 7}, 1 << 40 | 7, True),
        ({"op": "SCMP_CMP_EQ", "value": 1 << 40 | 7}, 7, False),
        ({"op": "SCMP_CMP_GT", "value": 0xFFFFFFFF}, 1 << 32, True),
        ({"op": "SCMP_CMP_GT", "value": 0xFFFFFFFF}, 0xFFFFFFFF, False),
        ({"op": "SCMP_CMP_GE", "value": 1 << 63}, 1 << 63, True),
        ({"op": "SCMP_CMP_LT", "value": 1 << 32}, 0xFFFFFFFF, True),
        ({"op": "SCMP_CMP_LE", "value": 5}, 6, False),
        ({"op": "SCMP_CMP_NE", "value": 5}, 6, True),
        ({"op": "SCMP_CMP_MASKED_EQ", "value": 0x7E020000, "valueTwo": 0x20000}, 0x20011, True),
        ({"op": "SCMP_CMP_MASKED_EQ", "value": 0x7E020000, "valueTwo": 0x20000}, 0x11, False),
    ],
)
def test_argument_comparison_in_the_kernel(test: dict[str, Any], value: int, refused: bool) -> None:
    """getpid ignores its arguments, so it shows what the filter makes of them, all 64 bits."""
    probe = profile("SCMP_ACT_ERRNO", "getpid", {"index": 2, **test})
    assert under(probe, lambda: call("getpid", 0, 0, value)) == (errno.EPERM if refused else 0)


def test_trap_sends_sigsys() -> None:
    """TRAP is a signal that the process can handle."""

    def trapped() -> int:
        seen: list[int] = []
        signal.signal(signal.SIGSYS, lambda number, _frame: seen.append(number))
        call("getppid")
        return seen[0]

    assert under(profile("SCMP_ACT_TRAP", "getppid"), trapped) == signal.SIGSYS


def test_kill_process_ends_the_process() -> None:
    """KILL_PROCESS ends the caller by SIGSYS."""
    with pytest.raises(forked.ChildDied) as died:
        under(profile("SCMP_ACT_KILL_PROCESS", "getppid"), lambda: call("getppid"))
    assert died.value.signum == signal.SIGSYS


def _needs_compat() -> None:
    try:
        pid = forked.run(lambda: call_32(I386["getpid"]) == os.getpid())
    except forked.ChildDied:
        pid = False
    if not pid:
        pytest.skip("this kernel has no 32-bit system calls (CONFIG_IA32_EMULATION)")


def test_32_bit_calls_are_filtered_by_their_own_numbers() -> None:
    """A 64-bit process cannot pass the filter by int 0x80."""
    _needs_compat()
    probe = profile("SCMP_ACT_ERRNO", "getppid", errnoRet=errno.ENOTTY)
    answers = under(probe, lambda: (call_32(I386["getppid"]), call_32(I386["getpid"]) == os.getpid()))
    assert answers == (-errno.ENOTTY, True)


def test_32_bit_calls_without_their_architecture_are_fatal() -> None:
    """Where only x86_64 is listed, int 0x80 ends the process."""
    _needs_compat()
    probe = {**profile("SCMP_ACT_ERRNO", "getppid"), "architectures": ["SCMP_ARCH_X86_64"]}
    with pytest.raises(forked.ChildDied) as died:
        under(probe, lambda: call_32(I386["getpid"]))
    assert died.value.signum == signal.SIGSYS


def test_x32_numbers_do_not_pass_an_x86_64_filter() -> None:
    """A call number with the x32 bit is fatal, also where the kernel would have run it."""
    with pytest.raises(forked.ChildDied) as died:
        under(profile("SCMP_ACT_ERRNO", "getppid"), lambda: LIBC.syscall(X86_64["getppid"] | seccomp.X32_BIT))
    assert died.value.signum == signal.SIGSYS


def test_biggest_program_is_taken_by_the_kernel() -> None:
    """A filter near the 4096 instructions, with its far jumps, passes the kernel's checker and decides
    right.
    """
    rules = [
        {
            "names": ["getpid"],
            "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": n << 32 | n}],
        }
        for n in range(1, 950)
    ]
    probe = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
    answers = under(probe, lambda: [call("getpid", n << 32 | n) for n in (1, 949, 950)])
    assert answers == [errno.EPERM, errno.EPERM, 0]
