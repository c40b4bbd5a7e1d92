"""The devices of a clone: looked over in the template, taken into use again when the host has put them back.

Owns: what of a device is kept while it is away, the host's word that they are there, the rest of their slot. Called by
agent.start in a template; `find` by whoever misses a device.

The host takes the template's vsock device, and the share beside it in its slot, away behind the guest's back before it saves
the VM, and puts others in their places before a clone runs. So the clone's kernel knows the devices already: their
numbers, their registers' addresses, their places in sysfs. A new one has lost what was written into it: that is written
again, and the driver need not know; where that cannot be done, the driver lets go of the device in the template, and takes
it again. An emulator has translated nothing of what a restored VM runs: finding a device by ACPI and the PCI bus is 8000
pieces of code, a driver's start 3000.
"""

from __future__ import annotations

import os

from agent.linux import virtio_pci

DRIVERS = "/sys/bus/virtio/drivers"
VSOCK = "vmw_vsock_virtio_transport"
SHARE = "virtiofs"
PORTS = "/sys/class/virtio-ports"
DEVICES = "/dev"
PORT_NAME = "hako.arrival"
HOTPLUG_EVENT = "/sys/firmware/acpi/interrupts/gpe01"
"""QEMU's word to ACPI that a PCI device has come (hw/i386/acpi-build.c: method _E01)"""

# The header of PCI's configuration space (linux/pci_regs.h)
_CONFIG = 256
_COMMAND = slice(0x04, 0x06)
_BASE_ADDRESSES = slice(0x10, 0x28)

_away: dict[str, Place] = {}
"""by their drivers: devices beside the vsock device that are there again, and not in use yet"""
_unseen = ""
"""a file that makes the kernel look for devices that came together with the vsock device; "" when it has looked"""


class Place:
    """A virtio device of the template, in whose place each clone has another. Raises OSError."""

    def __init__(self, driver: str, name: str) -> None:
        self.device = os.path.dirname(os.path.realpath(f"{DRIVERS}/{driver}/{name}"))
        self._name = name.encode()
        self._config = os.open(f"{self.device}/config", os.O_RDWR | os.O_CLOEXEC)
        self._saved = os.pread(self._config, _CONFIG, 0)
        self._unbind = f"{DRIVERS}/{driver}/unbind"
        self._bind = os.open(f"{DRIVERS}/{driver}/bind", os.O_WRONLY | os.O_CLOEXEC)
        self._registers: virtio_pci.Registers | None = None

    def leave(self) -> None:
        """Keep what the driver has set, or have it let go of the device; nobody may use that any more."""
        try:
            self._registers = virtio_pci.Registers(self.device, self._saved)
        except OSError:
            _write(self._unbind, self._name)

    def take(self) -> None:
        """Take the one that is there now into use."""
        os.pwrite(self._config, self._saved[_BASE_ADDRESSES], _BASE_ADDRESSES.start)
        os.pwrite(self._config, self._saved[_COMMAND], _COMMAND.start)
        if self._registers is not None:
            messages = virtio_pci.message_control(self._saved)
            if messages is not None:
                os.pwrite(self._config, self._saved[messages], messages.start)
            try:
                self._registers.set_again()
                return
            except virtio_pci.Changed:
                _write(self._unbind, self._name)
        os.write(self._bind, self._name)


class Arrival:
    """Made before the template is saved, the last that it does. Raises OSError, IndexError where there is no device."""

    def __init__(self) -> None:
        self._vsock = _places(VSOCK)[0]
        slot = self._vsock.device.rpartition(".")[0]
        self._beside = {driver: place for driver in (SHARE,) for place in _places(driver) if place.device.startswith(slot)}
        self._event = os.open(HOTPLUG_EVENT, os.O_WRONLY | os.O_CLOEXEC)
        self._host = os.open(_port(), os.O_RDWR | os.O_CLOEXEC)
        for place in (self._vsock, *self._beside.values()):
            place.leave()
        os.write(self._event, b"disable\n")

    def wait(self, hello: bytes) -> None:
        """Until the host says that the device is there, and its driver is up; the host is answered with `hello`.

        Not on the console: a terminal would be twice the code.
        """
        global _unseen
        os.read(self._host, 1)
        # The event of the plug itself is of no use any more, and the kernel forgets it here (since Linux 5.1). An event
        # after the answer must not be forgotten: the host may plug a disk as soon as it has that.
        os.write(self._event, b"enable\n")
        self._vsock.take()
        os.write(self._host, hello)
        _unseen = f"{self._vsock.device}/rescan"
        _away.update(self._beside)


def find(driver: str) -> None:
    """Make the kernel find a device that the host has put beside the vsock device; nothing is done a second time."""
    global _unseen
    place = _away.pop(driver, None)
    if place is not None:
        place.take()
        return
    path, _unseen = _unseen, ""
    if path:
        _write(path, b"1")


def _places(driver: str) -> list[Place]:
    """Of all devices that have this driver."""
    try:
        names = os.listdir(f"{DRIVERS}/{driver}")
    except FileNotFoundError:  # a kernel without it
        return []
    return [Place(driver, name) for name in names if name.startswith("virtio")]


def _port() -> str:
    for name in os.listdir(PORTS):
        with open(f"{PORTS}/{name}/name") as file:
            if file.read().strip() == PORT_NAME:
                return f"{DEVICES}/{name}"
    raise FileNotFoundError(PORT_NAME)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
