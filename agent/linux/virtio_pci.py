"""A virtio device on PCI by its registers: what its driver has set, and another device in its place set in the same way.

Owns: the place of the registers (virtio 1.2, 4.1.4), the order in which a driver writes them (3.1.1), the table of message
signalled interrupts (PCI 3.0, 6.8.2). Must not know: which device it is, PCI's base addresses. Called by agent.arrival.

The driver does not notice the exchange if neither device has used a buffer of its queues: both begin at the first one.
"""

from __future__ import annotations

import mmap
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_CAPABILITIES = 0x34
_VENDOR, _MSIX = 0x09, 0x11
_MSIX_ENABLED, _MSIX_LAST = 0x8000, 0x7FF
_MSIX_WORDS = 4
"""of an entry of the table: address, data, and whether it is masked"""
_COMMON, _DEVICE = 1, 4

# Of the common structure, in units of the register's own size.
_FEATURES_SELECT, _FEATURES = 8 // 4, 12 // 4  # the driver's, not the device's
_STATUS = 20
_CONFIG_VECTOR, _QUEUE_VECTOR = 16 // 2, 26 // 2
_QUEUES, _QUEUE_SELECT, _QUEUE_SIZE, _QUEUE_ENABLE = 18 // 2, 22 // 2, 24 // 2, 28 // 2
_QUEUE_ADDRESSES = range(32 // 4, 56 // 4)
_ACKNOWLEDGE, _DRIVER, _DRIVER_OK, _FEATURES_OK = 1, 2, 4, 8


class Changed(OSError):
    """The other device is not like the one that was there."""


def capabilities(config: bytes) -> list[tuple[int, int]]:
    """(id, offset) of each in a device's configuration space."""
    found: list[tuple[int, int]] = []
    at = config[_CAPABILITIES]
    while 0x40 <= at < len(config) - 4 and len(found) < 48:
        found.append((config[at], at))
        at = config[at + 1]
    return found


def message_control(config: bytes) -> slice | None:
    """Where in a configuration space message signalled interrupts were switched on; None if they are off."""
    for kind, at in capabilities(config):
        if kind == _MSIX and struct.unpack_from("<H", config, at + 2)[0] & _MSIX_ENABLED:
            return slice(at + 2, at + 4)
    return None


class Registers:
    """Of one device; what the driver has set is read at once. `directory`: in sysfs; `config`: configuration space.

    Raises OSError if the kernel does not let them be mapped, Changed for a device that cannot be exchanged.
    """

    def __init__(self, directory: str, config: bytes) -> None:
        places: dict[int, tuple[int, int, int]] = {}
        for kind, at in capabilities(config):
            if kind == _VENDOR:
                _, _, _, structure, bar, offset, length = struct.unpack_from("<BBBBB3xII", config, at)
                places.setdefault(structure, (bar, offset, length))
        if _COMMON not in places or _DEVICE not in places:
            raise Changed("it is no virtio 1.0 device")
        self._status, shorts, words = _views(directory, *places[_COMMON])
        self._own = _views(directory, *places[_DEVICE])[2]
        self._first_word = self._own[0]
        self._greeting = [(self._status, _STATUS, value) for value in (0, _ACKNOWLEDGE, _ACKNOWLEDGE | _DRIVER)]
        self._greeting += _read(words, _FEATURES_SELECT, range(2), [(words, _FEATURES)])
        self._greeting.append((self._status, _STATUS, _ACKNOWLEDGE | _DRIVER | _FEATURES_OK))
        messages = message_control(config)
        vectors = [(shorts, _QUEUE_VECTOR)] if messages else []
        self._messages = _messages(directory, config, messages.start - 2) if messages else []
        if messages:
            self._messages.append((shorts, _CONFIG_VECTOR, shorts[_CONFIG_VECTOR]))
        queue = [*vectors, (shorts, _QUEUE_SIZE), *((words, at) for at in _QUEUE_ADDRESSES), (shorts, _QUEUE_ENABLE)]
        self._queues = _read(shorts, _QUEUE_SELECT, range(shorts[_QUEUES]), queue)
        self._queues.append((self._status, _STATUS, _ACKNOWLEDGE | _DRIVER | _FEATURES_OK | _DRIVER_OK))

    def set_again(self) -> None:
        """Bring the device that is there now to where the other was. Raises Changed."""
        for registers, at, value in self._greeting:
            registers[at] = value
        if not self._status[_STATUS] & _FEATURES_OK or self._own[0] != self._first_word:
            raise Changed("another device is there")
        for registers, at, value in self._messages + self._queues:
            registers[at] = value


def _read(
    selects: memoryview, select: int, numbers: Iterable[int], places: list[tuple[memoryview, int]]
) -> list[tuple[memoryview, int, int]]:
    """The writes that give each of `numbers`, which register `select` selects, what it has in its registers now."""
    writes = []
    for number in numbers:
        selects[select] = number
        writes.append((selects, select, number))
        writes += [(registers, at, registers[at]) for registers, at in places]
    return writes


def _messages(directory: str, config: bytes, capability: int) -> list[tuple[memoryview, int, int]]:
    """The writes that give the table of message signalled interrupts what it has now."""
    control, place = struct.unpack_from("<HI", config, capability + 2)
    entries = (control & _MSIX_LAST) + 1
    table = _views(directory, place & 7, place & ~7, entries * _MSIX_WORDS * 4)[2]
    return [(table, at, table[at]) for at in range(entries * _MSIX_WORDS)]


def _views(directory: str, bar: int, offset: int, length: int) -> tuple[memoryview, memoryview, memoryview]:
    """A structure's registers of one, two and four bytes: a device takes only accesses of their sizes."""
    fd = os.open(f"{directory}/resource{bar}", os.O_RDWR | os.O_CLOEXEC)
    try:
        page = mmap.mmap(fd, mmap.PAGESIZE, offset=offset)
    finally:
        os.close(fd)
    whole = memoryview(page)[: length & ~3]
    return whole, whole.cast("H"), whole.cast("I")
