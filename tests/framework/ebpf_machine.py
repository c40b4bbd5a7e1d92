"""An eBPF machine for device programs: runs one over a made-up access to a device.

Owns: the instructions that agent/linux/bpf.py uses; anything else raises. Also the rule semantics in plain
Python, as the oracle.
"""

from __future__ import annotations

import struct

from agent.linux import bpf


def run(program: bytes, kind: int, access: int, major: int, minor: int) -> bool:
    """The program's verdict on one access."""
    code = list(struct.iter_unpack("=BBhI", program))
    context = struct.pack("=III", access << 16 | kind, major, minor)
    registers, here = [0] * 11, 0
    while True:
        operation, pair, offset, value = code[here]
        target, source = pair & 15, pair >> 4
        here += 1
        match operation:
            case 0x61:
                (registers[target],) = struct.unpack_from("=I", context, offset)
            case 0xBC:
                registers[target] = registers[source]
            case 0xB4:
                registers[target] = value
            case 0x74:
                registers[target] >>= value
            case 0x54:
                registers[target] &= value
            case 0x16:
                here += offset if registers[target] == value else 0
            case 0x56:
                here += offset if registers[target] != value else 0
            case 0x95:
                return bool(registers[0])
            case _:
                raise ValueError(f"instruction {operation:#x}")


def expected(rules: list[bpf.Rule], default: bool, kind: int, access: int, major: int, minor: int) -> bool:
    """Every asked access by its last matching rule."""
    return all(
        _single(rules, default, kind, bit, major, minor)
        for bit in (bpf.MKNOD, bpf.READ, bpf.WRITE)
        if access & bit
    )


def _single(rules: list[bpf.Rule], default: bool, kind: int, bit: int, major: int, minor: int) -> bool:
    for allow, rule_kind, rule_major, rule_minor, access in reversed(rules):
        same = rule_kind in (bpf.ANY, kind) and rule_major in (-1, major) and rule_minor in (-1, minor)
        if same and access & bit:
            return allow
    return default
