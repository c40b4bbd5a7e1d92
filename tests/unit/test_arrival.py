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


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sysfs:
    """A virtio device virtio5 of a PCI device, bound to its driver, and two ports, of which one is ours."""
    device, driver, ports = tmp_path / "0000:01:00.0", tmp_path / "driver", tmp_path / "ports"
    (device / "virtio5").mkdir(parents=True)
    (device / "config").write_bytes(HEADER + b"rest")
    driver.mkdir()
    (driver / "virtio5").symlink_to(device / "virtio5")
    for path in (driver / "bind", driver / "unbind", device / "rescan", tmp_path / "gpe01"):
        path.touch()
    for name, said in (("vport0p0", ""), ("vport0p1", arrival.PORT_NAME)):
        (ports / name).mkdir(parents=True)
        (ports / name / "name").write_text(said + "\n")
    os.mkfifo(tmp_path / "vport0p1")
    monkeypatch.setattr(arrival, "DRIVER", str(driver))
    monkeypatch.setattr(arrival, "PORTS", str(ports))
    monkeypatch.setattr(arrival, "DEVICES", str(tmp_path))
    monkeypatch.setattr(arrival, "HOTPLUG_EVENT", str(tmp_path / "gpe01"))
    monkeypatch.setattr(arrival, "_unseen", "")
    return Sysfs(device, driver, tmp_path / "gpe01", tmp_path / "vport0p1")


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
    assert sysfs.event.read_bytes() == b"disable\nclear\nenable\n"


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
        assert isinstance(made._registers, Registers)
        made._registers.error = error
        os.write(host, b"\n")
        made.wait(HELLO)
        os.close(host)
        assert (sysfs.driver / "unbind").read_bytes() == written
        assert (sysfs.driver / "bind").read_bytes() == written


def test_what_else_is_in_the_slot_is_looked_for_once(sysfs: Sysfs) -> None:
    """Only in a clone, only when something is missed."""
    arrival.look_again()
    assert (sysfs.device / "rescan").read_bytes() == b""
    made, host = begin(sysfs)
    os.write(host, b"\n")
    made.wait(HELLO)
    os.close(host)
    arrival.look_again()
    assert (sysfs.device / "rescan").read_bytes() == b"1"
    (sysfs.device / "rescan").write_bytes(b"")
    arrival.look_again()
    assert (sysfs.device / "rescan").read_bytes() == b""


def test_without_the_hosts_port_there_is_no_template(sysfs: Sysfs) -> None:
    """An agent that could not be woken must not be saved; the device is still its own."""
    (Path(arrival.PORTS) / "vport0p1/name").write_text("other\n")
    with pytest.raises(FileNotFoundError, match=arrival.PORT_NAME):
        arrival.Arrival()
    assert (sysfs.driver / "unbind").read_bytes() == b""
