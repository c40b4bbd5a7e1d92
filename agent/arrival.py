"""The vsock device of a clone: looked over in the template, taken into use again when the host has put it back.

Owns: what of the device is kept while it is away, the host's word that it is there, the rest of its slot. Called by
agent.start in a template; `look_again` by whoever misses another device.

The host takes the template's vsock device away behind the guest's back before it saves the VM, and puts another in
its place before a clone runs. So the clone's kernel knows the device already: its number, its registers' addresses,
its place in sysfs. A new one has lost what was written into it: that is written again, and the driver need not know; where
that cannot be done, the driver lets go of the device in the template, and takes it again. An emulator has translated
nothing of what a restored VM runs: finding a device by ACPI and the PCI bus is 8000 pieces of code, a driver's start 3000.
"""

from __future__ import annotations

import os

from agent.linux import virtio_pci

DRIVER = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"
PORTS = "/sys/class/virtio-ports"
DEVICES = "/dev"
PORT_NAME = "hako.arrival"
HOTPLUG_EVENT = "/sys/firmware/acpi/interrupts/gpe01"
"""QEMU's word to ACPI that a PCI device has come (hw/i386/acpi-build.c: method _E01)"""

# The header of PCI's configuration space (linux/pci_regs.h)
_CONFIG = 256
_COMMAND = slice(0x04, 0x06)
_BASE_ADDRESSES = slice(0x10, 0x28)

_unseen = ""
"""a file that makes the kernel look for devices that came together with the vsock device; "" when it has looked"""


class Arrival:
    """Made before the template is saved, the last that it does. Raises OSError, StopIteration where there is no device."""

    def __init__(self) -> None:
        name = next(name for name in os.listdir(DRIVER) if name.startswith("virtio"))
        device = os.path.dirname(os.path.realpath(f"{DRIVER}/{name}"))
        self._config = os.open(f"{device}/config", os.O_RDWR | os.O_CLOEXEC)
        self._saved = os.pread(self._config, _CONFIG, 0)
        self._rescan = f"{device}/rescan"
        self._name = name.encode()
        self._bind = os.open(f"{DRIVER}/bind", os.O_WRONLY | os.O_CLOEXEC)
        self._event = os.open(HOTPLUG_EVENT, os.O_WRONLY | os.O_CLOEXEC)
        self._host = os.open(_port(), os.O_RDWR | os.O_CLOEXEC)
        try:
            self._registers: virtio_pci.Registers | None = virtio_pci.Registers(device, self._saved)
        except OSError:
            self._registers = None
            self._unbind()
        os.write(self._event, b"disable\n")

    def wait(self, hello: bytes) -> None:
        """Until the host says that the device is there, and its driver is up; the host is answered with `hello`.

        Not on the console: a terminal would be twice the code.
        """
        global _unseen
        os.read(self._host, 1)
        os.pwrite(self._config, self._saved[_BASE_ADDRESSES], _BASE_ADDRESSES.start)
        os.pwrite(self._config, self._saved[_COMMAND], _COMMAND.start)
        self._take()
        os.write(self._host, hello)
        # The event of the plug itself is of no use any more; later ones are.
        os.write(self._event, b"clear\n")
        os.write(self._event, b"enable\n")
        _unseen = self._rescan

    def _take(self) -> None:
        if self._registers is not None:
            try:
                self._registers.set_again()
                return
            except virtio_pci.Changed:
                self._unbind()
        os.write(self._bind, self._name)

    def _unbind(self) -> None:
        _write(f"{DRIVER}/unbind", self._name)


def look_again() -> None:
    """Make the kernel find what the host has put beside the vsock device; does nothing the second time."""
    global _unseen
    path, _unseen = _unseen, ""
    if path:
        _write(path, b"1")


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
