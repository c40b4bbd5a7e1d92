"""Assembler for classic BPF, as seccomp filters use it.

Owns: instruction encoding, labels, and jumps farther than the 255 instructions that a conditional jump can
span. Knows nothing of system calls or of seccomp's actions. Called by agent/seccomp.py.

A program is written from its end to its beginning: a jump can only go forward, so every target exists when
the jump is written and its distance is known at once.
"""

from __future__ import annotations

import struct

# linux/bpf_common.h and linux/filter.h
LD_WORD_ABSOLUTE = 0x20
ALU_AND = 0x54
JUMP_ALWAYS = 0x05
JUMP_EQUAL = 0x15
JUMP_GREATER = 0x25
JUMP_GREATER_OR_EQUAL = 0x35
RETURN = 0x06
MAX_INSTRUCTIONS = 4096

_FARTHEST = 255
_INSTRUCTION = struct.Struct("=HBBI")


class Assembler:
    """Collects instructions backwards; a label is the number of instructions from the program's end to its
    place.
    """

    __slots__ = ("_code", "_returns")

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._returns: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._code)

    def _put(self, code: int, if_true: int, if_false: int, k: int) -> int:
        self._code.append((code, if_true, if_false, k))
        return len(self._code)

    def give(self, value: int) -> int:
        """Label of an instruction that ends the program with `value`; a near one is used again."""
        label = self._returns.get(value)
        # One instruction in its place is no dearer than the jump to a far one.
        if label is None or len(self._code) - label > _FARTHEST - 3:
            label = self._returns[value] = self._put(RETURN, 0, 0, value)
        return label

    def load(self, offset: int) -> int:
        """Accumulator = 32-bit word at `offset` of the input; continues with what was written last."""
        return self._put(LD_WORD_ABSOLUTE, 0, 0, offset)

    def mask(self, value: int) -> int:
        """Accumulator &= value; continues with what was written last."""
        return self._put(ALU_AND, 0, 0, value)

    def jump(self, code: int, value: int, if_true: int, if_false: int) -> int:
        """Compare the accumulator with `value` (JUMP_EQUAL, ...) and go on at one of two labels."""
        # Each far target costs a JUMP_ALWAYS, which moves the other one farther: hence the margin of two.
        if_true = self._near(if_true)
        if_false = self._near(if_false)
        here = len(self._code)
        return self._put(code, here - if_true, here - if_false, value)

    def continue_at(self, label: int) -> None:
        """Let what is written next continue at `label`, wherever that is."""
        if label != len(self._code):
            self._put(JUMP_ALWAYS, 0, 0, len(self._code) - label)

    def _near(self, label: int) -> int:
        distance = len(self._code) - label
        return label if distance <= _FARTHEST - 2 else self._put(JUMP_ALWAYS, 0, 0, distance)

    def assemble(self) -> bytes:
        """The program as an array of struct sock_filter."""
        return b"".join([_INSTRUCTION.pack(*instruction) for instruction in reversed(self._code)])
