"""guest-kernel/modules.py: what modules need of each other, from their own .modinfo."""

from __future__ import annotations

import struct

import modules
import pytest
from modules import Module, ModuleError, describe, load_order, modules_alias, modules_dep


def ko(*fields: str) -> bytes:
    """The smallest 64-bit ELF file with a .modinfo section."""
    info = "\0".join(fields).encode() + b"\0"
    names = b"\0.modinfo\0.shstrtab\0"
    table = 64 + len(info) + len(names)
    header = b"\x7fELF\x02\x01".ljust(40, b"\0") + struct.pack("<Q", table)
    header = header.ljust(58, b"\0") + struct.pack("<HHH", 64, 3, 2)
    sections = [(0, 0, 0), (1, 64, len(info)), (10, 64 + len(info), len(names))]
    rows = [struct.pack("<IIQQQQ", name, 1, 0, 0, offset, size).ljust(64, b"\0") for name, offset, size in sections]
    return header + info + names + b"".join(rows)


def known(*given: Module) -> dict[str, Module]:
    return {module.name: module for module in given}


def test_a_module_describes_itself() -> None:
    """Dependencies, soft ones that come before, aliases; dashes are underscores."""
    data = ko("license=GPL", "depends=virtio-ring,virtio", "softdep=pre: crc32c post: late", "alias=net-pf-40", "alias=vsock")
    found = describe("kernel/net/vmw-vsock.ko", data)
    assert found.name == "vmw_vsock"
    assert found.depends == ("virtio_ring", "virtio")
    assert (found.wishes, found.aliases) == (("crc32c",), ("net-pf-40", "vsock"))


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh", ko()[:4]])
def test_what_is_no_module_is_refused(data: bytes) -> None:
    """The message names the file."""
    with pytest.raises(ModuleError, match=r"kernel/x\.ko"):
        describe("kernel/x.ko", data)


def test_needed_modules_come_first_and_once() -> None:
    """Diamonds are loaded once, soft dependencies if they are there, built-in ones not at all."""
    parts = known(
        Module("top", "top.ko", ("left", "right")), Module("left", "left.ko", ("base", "core")),
        Module("right", "right.ko", ("base",), wishes=("nice", "absent")), Module("base", "base.ko", ()),
        Module("nice", "nice.ko", ()),
    )  # fmt: skip
    order = load_order(["top", "right"], parts, builtin=frozenset({"core"}))
    assert [module.name for module in order] == ["base", "left", "nice", "right", "top"]


def test_what_is_missing_says_who_needs_it() -> None:
    """A set that cannot be loaded is an error of the build, not of the boot."""
    with pytest.raises(ModuleError, match="module gone is not there, which top needs"):
        load_order(["top"], known(Module("top", "top.ko", ("gone",))))
    with pytest.raises(ModuleError, match="a -> b -> a"):
        load_order(["a"], known(Module("a", "a.ko", ("b",)), Module("b", "b.ko", ("a",))))


def test_index_files_are_those_of_depmod() -> None:
    """modules.dep lists from right to left; modules.alias has one line an alias."""
    parts = known(Module("b", "net/b.ko", ("a",), aliases=("ip-b", "ipt-b")), Module("a", "lib/a.ko", ()))
    assert modules_dep(parts.values(), parts) == "lib/a.ko:\nnet/b.ko: lib/a.ko\n"
    assert modules_alias(parts.values()) == "alias ip-b b\nalias ipt-b b\n"
    assert modules.plain("xt-mark") == "xt_mark"
