"""A clone's vsock device: let go in the template, taken into use when the host says so; sysfs is made of files."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from agent import arrival
from agent.linux import virtio_pci

HEADER = bytes(range(100, 164))
HELLO = b"hello\n"
WAKE = 5.0


class Sysfs(NamedTuple):
    """The files that are written; what is written to one goes on where the last ended."""

    device: Path
    driver: Path
    event: Path
    port: Path

    def add(self, place: str, driver: str, name: str) -> tuple[Path, Path]:
        """A virtio device of a PCI device, bound to its driver; the directories of the PCI device and the driver."""
        device, of_driver = self.device.parent / place, self.driver.parent / driver
        (device / name).mkdir(parents=True)
        (device / "config").write_bytes(HEADER + b"rest")
        of_driver.mkdir(parents=True)
        (of_driver / name).symlink_to(device / name)
        for path in (of_driver / "bind", of_driver / "unbind", device / "rescan"):
            path.touch()
        return device, of_driver


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sysfs:
    """A virtio device virtio5 of a PCI device, bound to its driver, and two ports, of which one is ours."""
    ports, event = tmp_path / "ports", tmp_path / "gpe01"
    made = Sysfs(tmp_path / "0000:01:00.0", tmp_path / "drivers" / arrival.VSOCK, event, tmp_path / "vport0p1")
    made.add("0000:01:00.0", arrival.VSOCK, "virtio5")
    event.touch()
    for name, said in (("vport0p0", ""), ("vport0p1", arrival.PORT_NAME)):
        (ports / name).mkdir(parents=True)
        (ports / name / "name").write_text(said + "\n")
    os.mkfifo(tmp_path / "vport0p1")
    monkeypatch.setattr(arrival, "DRIVERS", str(made.driver.parent))
    monkeypatch.setattr(arrival, "PORTS", str(ports))
    monkeypatch.setattr(arrival, "DEVICES", str(tmp_path))
    monkeypatch.setattr(arrival, "HOTPLUG_EVENT", str(event))
    monkeypatch.setattr(arrival, "_unseen", "")
    monkeypatch.setattr(arrival, "_away", {})
    return made


def begin(sysfs: Sysfs) -> tuple[arrival.Arrival, int]:
    """In the template, and the host's end of the port, which is the same: it says something when it was read."""
    host = os.open(sysfs.port, os.O_RDWR)
    return arrival.Arrival(), host


def test_the_device_is_let_go_and_taken_again(sysfs: Sysfs) -> None:
    """A new one has forgotten its addresses and that it was switched on; nothing else of it is written."""
    made, host = begin(sysfs)
    assert (sysfs.driver / "unbind").read_bytes() == b"virtio5"
    assert sysfs.event.read_bytes() == b"disable\n"
    (sysfs.device / "config").write_bytes(bytes(len(HEADER)))
    waiting = threading.Thread(target=made.wait, args=[HELLO], daemon=True)
    waiting.start()
    assert (sysfs.driver / "bind").read_bytes() == b""
    os.write(host, b"\n")
    waiting.join(WAKE)
    assert os.read(host, 100) == HELLO
    os.close(host)
    assert (sysfs.driver / "bind").read_bytes() == b"virtio5"
    restored = (sysfs.device / "config").read_bytes()
    assert restored[4:6] == HEADER[4:6]
    assert restored[0x10:0x28] == HEADER[0x10:0x28]
    assert not any(restored[:4] + restored[6:0x10] + restored[0x28:])
    assert sysfs.event.read_bytes() == b"disable\nenable\n"


def test_what_is_plugged_after_the_answer_is_noticed(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switching the event on makes the kernel forget one that has come: so the host is answered later."""
    made, host = begin(sysfs)
    os.write(host, b"\n")
    order, write = [], os.write

    def recorded(fd: int, data: bytes) -> int:
        order.append(data)
        return write(fd, data)

    monkeypatch.setattr(os, "write", recorded)
    made.wait(HELLO)
    assert order.index(b"enable\n") < order.index(HELLO)
    os.close(host)


def test_a_driver_that_need_not_know_keeps_the_device(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is bound again only if the new device is another."""

    class Registers:
        """Of a device that is like the first as long as nothing is raised."""

        def __init__(self, *_: object) -> None:
            self.error: OSError | None = None

        def set_again(self) -> None:
            """As virtio_pci.Registers."""
            if self.error is not None:
                raise self.error

    monkeypatch.setattr(virtio_pci, "Registers", Registers)
    for error, written in ((None, b""), (virtio_pci.Changed("another"), b"virtio5")):
        made, host = begin(sysfs)
        assert isinstance(made._vsock._registers, Registers)
        made._vsock._registers.error = error
        os.write(host, b"\n")
        made.wait(HELLO)
        os.close(host)
        assert (sysfs.driver / "unbind").read_bytes() == written
        assert (sysfs.driver / "bind").read_bytes() == written


def test_what_else_is_in_the_slot_is_looked_for_once(sysfs: Sysfs) -> None:
    """Only in a clone, only when something is missed."""
    arrival.find("virtio_net")
    assert (sysfs.device / "rescan").read_bytes() == b""
    made, host = begin(sysfs)
    os.write(host, b"\n")
    made.wait(HELLO)
    os.close(host)
    arrival.find("virtio_net")
    assert (sysfs.device / "rescan").read_bytes() == b"1"
    (sysfs.device / "rescan").write_bytes(b"")
    arrival.find("virtio_net")
    assert (sysfs.device / "rescan").read_bytes() == b""


def test_a_share_in_the_slot_is_known_too(sysfs: Sysfs) -> None:
    """It is let go with the vsock device, and taken when it is missed, without a look at the slot."""
    device, driver = sysfs.add("0000:01:00.1", arrival.SHARE, "virtio6")
    made, host = begin(sysfs)
    assert (driver / "unbind").read_bytes() == b"virtio6"
    (device / "config").write_bytes(bytes(len(HEADER)))
    os.write(host, b"\n")
    made.wait(HELLO)
    os.close(host)
    assert (driver / "bind").read_bytes() == b"", "nobody wants it yet"
    arrival.find(arrival.SHARE)
    assert (driver / "bind").read_bytes() == b"virtio6"
    assert (device / "config").read_bytes()[0x10:0x28] == HEADER[0x10:0x28]
    assert (sysfs.device / "rescan").read_bytes() == b""
    arrival.find(arrival.SHARE)
    assert (sysfs.device / "rescan").read_bytes() == b"1", "a second one"


def test_a_share_elsewhere_stays(sysfs: Sysfs) -> None:
    """One that is saved with the VM is mounted."""
    device, driver = sysfs.add("0000:00:06.0", arrival.SHARE, "virtio6")
    made, host = begin(sysfs)
    os.write(host, b"\n")
    made.wait(HELLO)
    os.close(host)
    assert (driver / "unbind").read_bytes() == b"" == (driver / "bind").read_bytes()
    assert (device / "config").read_bytes().startswith(HEADER)


def test_without_the_hosts_port_there_is_no_template(sysfs: Sysfs) -> None:
    """An agent that could not be woken must not be saved; the device is still its own."""
    (Path(arrival.PORTS) / "vport0p1/name").write_text("other\n")
    with pytest.raises(FileNotFoundError, match=arrival.PORT_NAME):
        arrival.Arrival()
    assert (sysfs.driver / "unbind").read_bytes() == b""
