"""Devices, memory and vCPUs that come to a VM which is there already.

Owns: the empty root ports and who is in them, the QMP of hot-plugging, how much memory was added. Must not know:
QEMU's process, what is behind a descriptor. Called by driver.py and restore.py.

Several devices in one root port are functions of one PCI device: the guest is told of all of them when function 0
comes, so that comes last, and the guest looks once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from shim.errors import HakoError, Timeout, Unsupported
from shim.hypervisor.base import Disk, Nic, Plugged, Share, VmSpec, Vsock
from shim.hypervisor.qemu import argv
from shim.hypervisor.qemu.events import Events
from shim.hypervisor.qemu.qmp import Qmp, QmpError

UNPLUG_DEADLINE = 10.0  # seconds for the guest to let go of a device
MEMORY_DEADLINE = 15.0  # seconds for the guest to take memory into use
FUNCTIONS = 8  # of one PCI device

Properties: TypeAlias = dict[str, Any]  # properties of a device


class Occupant(NamedTuple):
    """Who is in a port, and what is to be done in QEMU when the device has gone."""

    port: int
    gone: Callable[[], object]


class Plugs:
    """What was plugged into one VM. Devices may come and go in several threads, `pod` and the size in one."""

    def __init__(self, qmp: Qmp, events: Events, spec: VmSpec, ports: int) -> None:
        self._qmp = qmp
        self._events = events
        self._spec = spec
        self._ports = ports
        self._free_ports = list(range(ports))
        self._plugged: dict[str, Occupant] = {}

    # Devices

    def nic(self, nic: Nic) -> Plugged:
        """A network card in a port of its own. Raises HakoError when no port is free."""
        return self._into_port(partial(self._nic, nic), partial(self._take_away, "netdev_del", "id"))

    def disk(self, disk: Disk) -> Plugged:
        """A disk in a port of its own. Raises HakoError when no port is free or it cannot be opened."""
        return self._into_port(partial(self._disk, disk), partial(self._take_away, "blockdev-del", "node-name"))

    def _take_away(self, command: str, key: str, backend: str) -> None:
        arguments: Properties = {key: backend}
        self._qmp.execute(command, **arguments)

    def _into_port(self, plug: Callable[[str, Properties], None], gone: Callable[[str], None]) -> Plugged:
        """`gone` takes the backend away, which is called as the device is."""
        port = self._take_port()
        name = f"plug{port}"
        try:
            plug(name, {"bus": f"port{port}"})
        except BaseException:
            self._free_ports.append(port)
            raise
        self._plugged[name] = Occupant(port, partial(gone, name))
        return Plugged(name, argv.port_path(port))

    def pod(self, share: Share | None, vsock: Vsock | None, nics: tuple[Nic, ...]) -> None:
        """What belongs to a pod and was not in its template, as functions of one device as far as they fit."""
        functions: list[Callable[[Properties], None]] = []
        if vsock is not None:
            functions.append(partial(self._vsock, vsock))
        if share is not None:
            functions.append(partial(self._share, share))
        first = nics[: FUNCTIONS - len(functions)]
        functions += [partial(self._nic, nic, f"net{number}") for number, nic in enumerate(first)]
        if functions:
            port = self._take_port()
            for number, plug in reversed(list(enumerate(functions))):
                plug({"bus": f"port{port}", "addr": f"0.{number}", "multifunction": True})
        for nic in nics[len(first) :]:
            self.nic(nic)

    def _nic(self, nic: Nic, name: str, at: Properties) -> None:
        self._qmp.execute("getfd", fdname=name, fds=[nic.fd])
        backend: dict[str, Any] = {"type": "tap", "id": name, "fd": name}
        if nic.vhost_fd >= 0:
            self._qmp.execute("getfd", fdname=f"vhost-{name}", fds=[nic.vhost_fd])
            backend |= {"vhost": True, "vhostfd": f"vhost-{name}"}
        self._qmp.execute("netdev_add", **backend)
        card: Properties = {"netdev": name, "mac": nic.mac, "host_mtu": nic.mtu, "romfile": ""}
        try:
            self._qmp.execute("device_add", driver="virtio-net-pci", id=name, **at, **card)
        except BaseException:
            self._qmp.execute("netdev_del", id=name)
            raise

    def _disk(self, disk: Disk, name: str, at: Properties) -> None:
        fdset, driver = self._lend_file(disk)
        lent: Properties = {"fdset-id": fdset}
        try:
            file: Properties = {"driver": driver, "filename": f"/dev/fdset/{fdset}", "read-only": disk.read_only}
            file |= {"locking": "off"} if disk.read_only else {"discard": "unmap"}  # others have a read-only one, too
            node: Properties = {"driver": "raw", "node-name": name, "read-only": disk.read_only, "file": file}
            node |= {} if disk.read_only else {"discard": "unmap"}
            self._qmp.execute("blockdev-add", **node)
        finally:
            self._qmp.execute("remove-fd", **lent)  # the open node keeps a duplicate
        try:
            self._qmp.execute("device_add", driver="virtio-blk-pci", id=name, drive=name, serial=disk.id, **at)
        except BaseException:
            self._take_away("blockdev-del", "node-name", name)
            raise

    def _lend_file(self, disk: Disk) -> tuple[int, str]:
        """Hand QEMU the open disk: the number of its set of descriptors, and the block driver for it."""
        try:
            fd = os.open(disk.path, (os.O_RDONLY if disk.read_only else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as exc:
            raise HakoError(exc.strerror or str(exc), step="plug a disk", object=disk.path) from exc
        try:
            driver = "host_device" if stat.S_ISBLK(os.fstat(fd).st_mode) else "file"
            return self._qmp.execute("add-fd", fds=[fd])["fdset-id"], driver
        finally:
            os.close(fd)

    def _share(self, share: Share, at: Properties) -> None:
        self._socket("share", share.fd)
        device: Properties = {"chardev": "share", "tag": share.tag, "queue-size": share.queue_size}
        self._qmp.execute("device_add", driver="vhost-user-fs-pci", id="share", **at, **device)

    def _vsock(self, vsock: Vsock, at: Properties) -> None:
        at = at | argv.vsock_interrupt(self._spec.accelerator)
        if vsock.cid:
            self._qmp.execute("getfd", fdname="vsock", fds=[vsock.fd])
            device: Properties = {"vhostfd": "vsock", "guest-cid": vsock.cid}
            self._qmp.execute("device_add", driver="vhost-vsock-pci", id="vsock", **at, **device)
            return
        self._socket("vsock", vsock.fd)
        self._qmp.execute("device_add", driver="vhost-user-vsock-pci", id="vsock", **at, chardev="vsock")

    def _socket(self, name: str, fd: int) -> None:
        """A connected socket as a character device."""
        self._qmp.execute("getfd", fdname=name, fds=[fd])
        address = {"type": "fd", "data": {"str": name}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        self._qmp.execute("chardev-add", id=name, backend=backend)

    def _take_port(self) -> int:
        if not self._free_ports:
            raise HakoError(
                f"all {self._ports} hot-plug ports are in use",
                step="plug a device",
                hint="[hypervisor] hotplug_ports",
            )
        return self._free_ports.pop(0)

    def unplug(self, device: str) -> None:
        """Take away what `nic` or `disk` added. Raises Timeout if the guest does not let go; it then stays."""
        occupant = self._plugged[device]
        self._qmp.execute("device_del", id=device)
        if not self._events.wait(lambda: device in self._events.deleted, UNPLUG_DEADLINE) and not self._events.ended:
            raise Timeout("the guest does not release the device", step="unplug", object=device)
        occupant.gone()
        self._events.deleted.discard(device)
        del self._plugged[device]
        self._free_ports.append(occupant.port)

    # Size

    def vcpus(self, wanted: int) -> None:
        """As many vCPUs in all. Raises Unsupported where there is no room for them (TCG has none)."""
        slots = self._qmp.execute("query-hotpluggable-cpus")
        free = sorted((slot for slot in slots if "qom-path" not in slot), key=lambda slot: _socket_of(slot))
        missing = wanted - (len(slots) - len(free))
        if missing > len(free):
            reason = f"{wanted} vCPUs wanted, {len(slots)} are the most of this VM"
            raise Unsupported(reason, step="grow", hint="an emulated VM (TCG) cannot get more vCPUs")
        for slot in free[: max(0, missing)]:
            name = f"cpu{_socket_of(slot)}"
            self._qmp.execute("device_add", driver=slot["type"], id=name, **slot["props"])

    def memory(self, wanted_mib: int) -> None:
        """As many MiB in all, rounded up; returns when the guest has them.

        Raises QmpError, Timeout. The guest tells the end of a hot-plug by ACPI's _OST.
        """
        dimms = self._qmp.execute("query-memory-devices")
        present = self._spec.memory_mib + sum(dimm["data"]["size"] for dimm in dimms) // (1 << 20)
        missing = -(-max(0, wanted_mib - present) // argv.DIMM_MIB) * argv.DIMM_MIB
        if not missing:
            return
        name = f"dimm{len(dimms)}"
        backend = {"qom-type": "memory-backend-memfd", "size": missing << 20, "share": True}
        self._qmp.execute("object-add", id=f"{name}-ram", **backend)
        try:
            self._qmp.execute("device_add", driver="pc-dimm", id=name, memdev=f"{name}-ram")
        except QmpError:
            self._qmp.execute("object-del", id=f"{name}-ram")
            raise
        if not self._events.wait(lambda: name in self._events.accepted, MEMORY_DEADLINE):
            raise Timeout(f"the guest does not take {missing} MiB of memory into use", step="grow", object=name)


def _socket_of(slot: dict[str, Any]) -> int:
    number: int = slot["props"]["socket-id"]
    return number
