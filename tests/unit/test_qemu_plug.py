"""What is plugged into a restored VM, and in which order: the guest looks when function 0 comes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from shim.errors import BootError, HakoError, Timeout
from shim.hypervisor.base import Disk, Nic, Plugged, Share, VmSpec, Vsock
from shim.hypervisor.qemu import plug, restore
from shim.hypervisor.qemu.events import Events
from shim.hypervisor.qemu.plug import Plugs

SPEC = VmSpec("s", "u", "/k", memory_mib=256)
NIC = Nic(5, "02:00:00:00:00:01")


class Monitor:
    """QMP that answers everything and remembers it."""

    def __init__(self, **answers: Any) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.answers = answers

    def execute(self, command: str, **arguments: Any) -> Any:
        """As Qmp.execute."""
        self.said.append((command, arguments))
        answer = self.answers.get(command)
        return answer() if callable(answer) else answer

    def devices(self) -> list[tuple[str, str, str]]:
        """(driver, bus, address) of what was plugged, in order."""
        added = [arguments for command, arguments in self.said if command == "device_add"]
        return [(one["driver"], one.get("bus", ""), one.get("addr", "")) for one in added]


def plugs(monitor: Monitor, events: Events | None = None, ports: int = 3) -> Plugs:
    """With three ports."""
    return Plugs(monitor, events or Events(), SPEC, ports)  # type: ignore[arg-type]


def test_a_pods_devices_are_functions_of_one() -> None:
    """vsock is function 0 and comes last."""
    monitor = Monitor()
    plugs(monitor).pod(Share(3, "tag"), Vsock(4), (NIC, NIC))
    assert monitor.devices() == [
        ("virtio-net-pci", "port0", "0.3"),
        ("virtio-net-pci", "port0", "0.2"),
        ("vhost-user-fs-pci", "port0", "0.1"),
        ("vhost-user-vsock-pci", "port0", "0.0"),
    ]


def test_what_does_not_fit_gets_a_port_of_its_own() -> None:
    """A PCI device has eight functions; when no port is left either, it is said."""
    monitor = Monitor()
    some = plugs(monitor)
    some.pod(Share(3, "tag"), Vsock(4), (NIC,) * 7)
    assert monitor.devices()[-2:] == [("vhost-user-vsock-pci", "port0", "0.0"), ("virtio-net-pci", "port1", "")]
    assert some.nic(NIC) == Plugged("plug2", "10.2/00")
    with pytest.raises(HakoError, match="all 3 hot-plug ports are in use"):
        some.nic(NIC)


def test_a_disk_comes_by_descriptor_and_goes_with_its_backend(tmp_path: Path) -> None:
    """QEMU may not be able to open it: it gets a set of descriptors, given back at once; unplugging frees the port."""
    image = tmp_path / "image"
    image.write_bytes(b"x" * 512)
    events = Events()
    monitor = Monitor(**{"add-fd": {"fdset-id": 7}, "device_del": lambda: events.take("DEVICE_DELETED", {"device": "plug0"})})
    some = plugs(monitor, events, ports=1)
    assert some.disk(Disk(str(image), read_only=True, id="root")) == Plugged("plug0", "10.0/00")
    assert [command for command, _ in monitor.said] == ["add-fd", "blockdev-add", "remove-fd", "device_add"]
    node, card = monitor.said[1][1], monitor.said[3][1]
    assert node["read-only"] and node["file"]["filename"] == "/dev/fdset/7" and node["file"]["driver"] == "file"
    assert (card["driver"], card["drive"], card["bus"], card["serial"]) == ("virtio-blk-pci", node["node-name"], "port0", "root")
    some.unplug("plug0")
    assert monitor.said[-1] == ("blockdev-del", {"node-name": "plug0"})
    assert some.disk(Disk(str(image), read_only=False, id="again")).id == "plug0"


def test_a_disk_that_is_not_there_takes_no_port(tmp_path: Path) -> None:
    """The file is named, and the port is free for another."""
    some = plugs(Monitor(), ports=1)
    with pytest.raises(HakoError, match=r"plug a disk: .*none: No such file"):
        some.disk(Disk(str(tmp_path / "none"), read_only=True, id="root"))
    some.nic(NIC)


def test_the_kernels_vsock_is_plugged_by_descriptor() -> None:
    """With its CID."""
    monitor = Monitor()
    plugs(monitor).pod(None, Vsock(4, 77), ())
    command, arguments = monitor.said[-1]
    assert (command, arguments["driver"], arguments["guest-cid"]) == ("device_add", "vhost-vsock-pci", 77)
    assert monitor.devices() == [("vhost-vsock-pci", "port0", "0.0")]


def test_memory_is_there_when_the_guest_has_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded up to whole sections; the guest's word is waited for, not long."""
    events, monitor = Events(), Monitor(**{"query-memory-devices": []})
    some = plugs(monitor, events)
    timer = threading.Timer(0.05, lambda: events.take("ACPI_DEVICE_OST", {"info": {"device": "dimm0", "status": 0}}))
    timer.start()
    some.memory(300)
    timer.join()
    backend = next(arguments for command, arguments in monitor.said if command == "object-add")
    assert backend["size"] == 128 << 20
    monkeypatch.setattr(plug, "MEMORY_DEADLINE", 0.01)
    with pytest.raises(Timeout, match="128 MiB of memory"):
        plugs(monitor).memory(300)
    some.memory(256)  # nothing is missing


@pytest.mark.parametrize(("status", "reason"), [("failed", "failed"), ("", "not done after")])
def test_a_stream_that_does_not_load(monkeypatch: pytest.MonkeyPatch, status: str, reason: str) -> None:
    """Is a BootError with QEMU's word for it, at once or at the deadline."""
    monkeypatch.setattr(restore, "LOAD_DEADLINE", 0.01)
    events = Events()
    monitor = Monitor(**{"migrate-incoming": lambda: events.take("MIGRATION", {"status": status})})
    with pytest.raises(BootError, match=f"load the template: {reason}"):
        restore.load(monitor, events, 9)  # type: ignore[arg-type]


def test_the_end_of_qemu_is_noticed() -> None:
    """Whoever waits is woken."""
    events = Events()
    threading.Timer(0.05, events.end).start()
    with pytest.raises(BootError, match="QEMU has ended"):
        restore.load(Monitor(), events, 9)  # type: ignore[arg-type]
