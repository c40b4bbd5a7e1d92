"""A classic BPF machine: runs a seccomp filter over a made-up system call.

Owns: decoding struct sock_filter and executing the instructions that seccomp allows and we or libseccomp
use. Used by tests which compare two filters without installing either.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ARCHITECTURE = 4  # its offset in struct seccomp_data, behind the number


@dataclass(frozen=True)
class Call:
    """What struct seccomp_data holds."""

    number: int
    arch: int
    args: tuple[int, ...] = (0, 0, 0, 0, 0, 0)

    def pack(self) -> bytes:
        """The bytes as the filter sees them."""
        return struct.pack("=IIQ6Q", self.number & 0xFFFFFFFF, self.arch, 0, *self.args)


def decode(program: bytes) -> list[tuple[int, int, int, int]]:
    """(code, jump if true, jump if false, constant) of each instruction."""
    return list(struct.iter_unpack("=HBBI", program))


def run(program: list[tuple[int, int, int, int]], call: Call, seen: list[int] | None = None) -> int:
    """The action that the filter returns; raises on an instruction that it must not contain.

    `seen` is given the offset of everything that it loads.
    """
    data, accumulator, here = call.pack(), 0, 0
    while True:
        code, if_true, if_false, k = program[here]
        here += 1
        match code:
            case 0x06:
                return k
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, k)
                if seen is not None:
                    seen.append(k)
            case 0x54:
                accumulator &= k
            case 0x05:
                here += k
            case 0x15:
                here += if_true if accumulator == k else if_false
            case 0x25:
                here += if_true if accumulator > k else if_false
            case 0x35:
                here += if_true if accumulator >= k else if_false
            case _:
                raise ValueError(f"instruction {code:#x} at {here - 1}")


def looks_at_arguments(program: list[tuple[int, int, int, int]], call: Call) -> bool:
    """Whether the filter reads anything but number and architecture on its way to the answer.

    If not, and the answer is ALLOW, Linux (5.11 and later) finds that out when the filter is installed, and lets the call
    pass by a bit without running any filter (kernel/seccomp.c, seccomp_is_const_allow).
    """
    seen: list[int] = []
    run(program, call, seen)
    return any(offset > ARCHITECTURE for offset in seen)
