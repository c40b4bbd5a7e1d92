"""What a driver has set in a virtio device, and the same again in another; the registers are a file."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from agent.linux import virtio_pci

COMMON, DEVICE = 0, 0x2000
STATUS, QUEUE = 20, 22


def config(msix: int = 0) -> bytes:
    """A configuration space: message signalled interrupts in BAR 1, common and device structure in BAR 4."""
    space = bytearray(256)
    space[0x34] = 0x40
    struct.pack_into("<BBHI", space, 0x40, 0x11, 0x50, msix, 1)
    struct.pack_into("<BBBBB3xII", space, 0x50, 9, 0x60, 16, 1, 4, COMMON, 0x38)
    struct.pack_into("<BBBBB3xII", space, 0x60, 9, 0, 16, 4, 4, DEVICE, 8)
    return bytes(space)


@pytest.fixture
def registers(tmp_path: Path) -> Path:
    """One queue that is set up; the driver has taken some features; the device has number 3. A file has no selectors."""
    bar = bytearray(0x4000)
    struct.pack_into("<IIIIHHBBHHHHH", bar, COMMON, 0, 0, 1, 0x31, 0xFFFF, 1, 15, 0, 0, 128, 0xFFFF, 1, 0)
    struct.pack_into("<QQQ", bar, COMMON + 32, 0x1000, 0x2000, 0x300004000)
    struct.pack_into("<Q", bar, DEVICE, 3)
    (tmp_path / "resource4").write_bytes(bar)
    return tmp_path / "resource4"


def test_another_device_is_set_as_the_first_was(registers: Path) -> None:
    """Features, sizes and addresses of queues; all are enabled and the driver is up at the end."""
    before = registers.read_bytes()
    saved = virtio_pci.Registers(str(registers.parent), config())
    with registers.open("r+b") as file:
        file.write(bytes(DEVICE))
        file.seek(COMMON + 18)
        file.write(b"\1")
    saved.set_again()
    after = registers.read_bytes()
    assert after[STATUS] == 15
    assert after[12:16] == before[12:16]
    assert after[QUEUE : QUEUE + 4] == before[QUEUE : QUEUE + 4]
    assert after[28:30] == b"\1\0"
    assert after[32:56] == before[32:56]


def test_message_signalled_interrupts_are_set_again(registers: Path) -> None:
    """The table with its two entries, and which queue has which."""
    table = bytes(range(1, 33))
    messages = registers.parent / "resource1"
    messages.write_bytes(table + bytes(4096 - len(table)))
    with registers.open("r+b") as file:
        file.seek(COMMON + 16)
        file.write(b"\0")
        file.seek(COMMON + 26)
        file.write(b"\1\0")
    before = registers.read_bytes()
    space = config(msix=0x8001)
    assert virtio_pci.message_control(space) == slice(0x42, 0x44)
    saved = virtio_pci.Registers(str(registers.parent), space)
    with messages.open("r+b") as file:
        file.write(bytes(4096))
    with registers.open("r+b") as file:
        file.seek(COMMON + 16)
        file.write(b"\xff\xff\1\0")
        file.seek(COMMON + 26)
        file.write(b"\xff\xff")
    saved.set_again()
    assert messages.read_bytes().rstrip(b"\0") == table
    assert registers.read_bytes()[COMMON : COMMON + 56] == before[COMMON : COMMON + 20] + b"\x0f" + before[21:56]


def test_another_kind_of_device_is_refused(registers: Path) -> None:
    """The driver has remembered its number; it must hear of the change."""
    saved = virtio_pci.Registers(str(registers.parent), config())
    with registers.open("r+b") as file:
        file.seek(DEVICE)
        file.write(b"\4")
    with pytest.raises(virtio_pci.Changed, match="another device"):
        saved.set_again()


def test_what_cannot_be_exchanged_is_said(tmp_path: Path) -> None:
    """A device of virtio 0.9 has other registers."""
    assert virtio_pci.message_control(config()) is None
    with pytest.raises(virtio_pci.Changed, match=r"no virtio 1\.0"):
        virtio_pci.Registers(str(tmp_path), bytes(256))
    with pytest.raises(FileNotFoundError):
        virtio_pci.Registers(str(tmp_path), config())


def test_a_chain_of_capabilities_ends() -> None:
    """Also one that bites its tail."""
    space = bytearray(config())
    space[0x61] = 0x40
    assert len(virtio_pci.capabilities(bytes(space))) == 48
    assert virtio_pci.capabilities(config()) == [(0x11, 0x40), (9, 0x50), (9, 0x60)]
