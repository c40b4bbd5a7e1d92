"""agent/linux/bpf.py: the device program against its rule semantics, on an interpreter."""

from __future__ import annotations

import itertools
import random
import struct

import pytest

from agent.linux import bpf
from tests.framework import ebpf_machine

RWM = bpf.EVERY_ACCESS
DENY_ALL: bpf.Rule = (False, bpf.ANY, -1, -1, RWM)


def verdicts(rules: list[bpf.Rule], default: bool = False) -> dict[tuple[int, int, int, int], bool]:
    """(kind, access, major, minor) -> verdict, for a grid of accesses."""
    program = bpf.device_program(rules, default)
    grid = itertools.product((bpf.BLOCK, bpf.CHARACTER), range(1, 8), (1, 5), (3, 9))
    return {access: ebpf_machine.run(program, *access) for access in grid}


@pytest.mark.parametrize("seed", range(60))
def test_program_follows_the_rules(seed: int) -> None:
    """Random lists with wildcards, partial accesses and contradictions: the program says what the rules
    say.
    """
    choose = random.Random(seed)
    rules: list[bpf.Rule] = [
        (
            choose.random() < 0.6,
            choose.choice((bpf.ANY, bpf.BLOCK, bpf.CHARACTER)),
            choose.choice((-1, 1, 5)),
            choose.choice((-1, 3, 9)),
            choose.randint(1, 7),
        )
        for _ in range(choose.randint(0, 8))
    ]
    default = choose.random() < 0.3
    want = {access: ebpf_machine.expected(rules, default, *access) for access in verdicts(rules, default)}
    assert verdicts(rules, default) == want


def test_later_rule_wins() -> None:
    """A deny after an allow holds, and an allow after that holds again."""
    null: bpf.Rule = (True, bpf.CHARACTER, 1, 3, RWM)
    access = (bpf.CHARACTER, bpf.READ | bpf.WRITE, 1, 3)
    assert verdicts([null])[access]
    assert not verdicts([null, DENY_ALL])[access]
    assert verdicts([DENY_ALL, null])[access]


def test_denied_write_is_not_reached_through_read_write() -> None:
    """Asking for two accesses at once does not get past a rule that denies one of them."""
    rules: list[bpf.Rule] = [(True, bpf.ANY, -1, -1, RWM), (False, bpf.CHARACTER, 1, 3, bpf.WRITE)]
    got = verdicts(rules)
    assert got[(bpf.CHARACTER, bpf.READ, 1, 3)]
    assert not got[(bpf.CHARACTER, bpf.READ | bpf.WRITE, 1, 3)]


def test_no_unreachable_code_after_a_rule_for_everything() -> None:
    """The verifier refuses dead code, so nothing follows a rule that decides everything."""
    program = bpf.device_program([(True, bpf.BLOCK, 8, 0, RWM), DENY_ALL], default=True)
    assert len(program) // 8 == 6 + 2


def test_big_numbers_are_compared_as_32_bits() -> None:
    """A minor above 2^31 is a value like any other."""
    program = bpf.device_program([(True, bpf.BLOCK, 8, 0xFFFFFFF0, RWM)], default=False)
    assert ebpf_machine.run(program, bpf.BLOCK, bpf.READ, 8, 0xFFFFFFF0)
    assert not ebpf_machine.run(program, bpf.BLOCK, bpf.READ, 8, 0xFFFFFFF1)


def test_instruction_layout() -> None:
    """struct bpf_insn: operation, registers (target low), offset, value."""
    first = bpf.device_program([], default=True)[:8]
    assert struct.unpack("=BBhI", first) == (0x61, 2 | 1 << 4, 0, 0)
