"""The classic BPF assembler: encoding and far jumps."""

from __future__ import annotations

from agent.linux import classic_bpf
from tests.framework import bpf_machine
from tests.framework.bpf_machine import Call


def test_jump_over_more_than_255_instructions_reaches_its_target() -> None:
    """A conditional jump spans 255 instructions; both far targets must still be reached."""
    code = classic_bpf.Assembler()
    code.give(7)
    yes = code.give(1)
    for _ in range(300):
        code.mask(0xFFFFFFFF)
    code.give(9)
    for _ in range(300):
        code.mask(0xFFFFFFFF)
    no = code.give(2)
    for _ in range(300):
        code.mask(0xFFFFFFFF)
    code.jump(classic_bpf.JUMP_EQUAL, 5, yes, no)
    code.load(0)
    program = bpf_machine.decode(code.assemble())
    assert bpf_machine.run(program, Call(5, 0)) == 1
    assert bpf_machine.run(program, Call(6, 0)) == 2


def test_every_distance_around_the_limit_is_encoded_right() -> None:
    """Targets at 250 to 260 instructions are reached whether a direct jump does or not."""
    for distance in range(250, 261):
        code = classic_bpf.Assembler()
        yes = code.give(1)
        other = code.give(3)
        for _ in range(distance):
            code.mask(0xFFFFFFFF)
        code.jump(classic_bpf.JUMP_GREATER, 5, yes, other)
        code.load(0)
        program = bpf_machine.decode(code.assemble())
        assert [bpf_machine.run(program, Call(n, 0)) for n in (6, 5)] == [1, 3]


def test_near_return_is_shared() -> None:
    """Equal actions near each other cost one instruction."""
    code = classic_bpf.Assembler()
    assert code.give(1) == code.give(1)
    assert len(code) == 1


def test_continue_at_a_label_that_is_not_next() -> None:
    """What is written after continue_at() goes on at that label."""
    code = classic_bpf.Assembler()
    first = code.give(1)
    code.give(2)
    code.continue_at(first)
    code.load(0)
    assert bpf_machine.run(bpf_machine.decode(code.assemble()), Call(0, 0)) == 1
