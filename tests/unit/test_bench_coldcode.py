"""What is made of a trace of QEMU's, and what addresses are called."""

from __future__ import annotations

import pytest

from tests.bench import coldcode
from tests.bench.coldcode import Block, Names

TRACE = """\
7@100.000000:translate_block tb:0x7f, pc:0xffffffff81000000, tb_code:0x7f
7@100.500000:handle_qmp_command mon 0x55 req: {"execute": "cont", "arguments": {}, "id": 10}
8@100.600000:translate_block tb:0x7f, pc:0xffffffff81000123, tb_code:0x7f
8@100.700000:virtio_console_flush_buf port 1, in_len 20, out_len 20
8@100.800000:translate_block tb:0x7f, pc:0x400010, tb_code:0x7f
hako: something else
"""
MAPS = "00400000-00500000 r-xp 00001000 fe:00 1 /no/such/program\n00500000-00600000 rw-p 00000000 00:00 0 \n"
KALLSYMS = "ffffffff81000000 T _text\nffffffff81000100 t do_work\nffffffff82000000 D data\n"


def test_what_was_translated_since_the_vm_ran() -> None:
    """What QEMU did before is not the guest's; lines of others are passed over."""
    traced = coldcode.blocks(TRACE.splitlines())
    assert (traced.began, round(traced.hello, 3)) == (100.5, 0.2)
    assert [(round(block.at, 3), block.address) for block in traced.blocks] == [(0.1, 0xFFFFFFFF81000123), (0.3, 0x400010)]
    with pytest.raises(ValueError, match="no VM that runs"):
        coldcode.blocks(TRACE.splitlines()[:1])


def test_names_of_addresses() -> None:
    """The function before; only the object of a file that the host has not."""
    names = Names(MAPS, KALLSYMS)
    assert names.of(0xFFFFFFFF81000123) == ("kernel", "do_work")
    assert names.of(0x400010) == ("program", "?")
    assert names.of(0x550000) == ("other programs", "?")


def test_the_table_has_a_line_for_each_phase() -> None:
    """And its functions, most first."""
    traced = coldcode.Traced(1.0, 0.2, [Block(0.1, 0xFFFFFFFF81000123), Block(0.1, 0xFFFFFFFF81000124), Block(0.3, 0x400010)])
    text = coldcode.table(traced, Names(MAPS, KALLSYMS), [("hello", 0.2), ("up", 0.4)], 1)
    assert text.splitlines() == [
        "hello: 2 blocks (kernel 2)", "       2  kernel: do_work", "up: 1 blocks (program 1)", "       1  program: ?",
    ]  # fmt: skip
