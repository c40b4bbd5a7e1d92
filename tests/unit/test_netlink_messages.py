"""agent/linux/netlink.py and uevent.py: encoding and hostile input, without a kernel."""

from __future__ import annotations

import struct

import pytest

from agent.linux import netlink, uevent


def test_attributes_are_padded_and_found_again() -> None:
    """An attribute's length counts its data, its place is rounded up to four."""
    data = netlink.attribute(3, b"eth0\0") + netlink.attribute_u32(4, 1500)
    assert len(data) == 12 + 8
    assert netlink.attributes(data) == {3: b"eth0\0", 4: struct.pack("=I", 1500)}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x00\x00\x01\x00",
        b"\x03\x00\x01\x00abcd",
        b"\xff\xff\x01\x00abcd",
        b"\x08\x00\x01\x00ab",
    ],
)
def test_broken_attributes_end_the_parsing(data: bytes) -> None:
    """A length that does not fit is neither followed nor fatal."""
    assert netlink.attributes(data) == {}


@pytest.mark.parametrize("length", [0, 15, 17, 1 << 31])
def test_broken_message_is_refused(length: int) -> None:
    """A message that is longer than its datagram or shorter than its header is an error."""
    with pytest.raises(ValueError, match="netlink message"):
        netlink.messages(struct.pack("=IHHII", length, 2, 0, 1, 0))


def test_addresses_and_hardware_addresses() -> None:
    """Text to bytes and back, both families."""
    assert netlink.parse_address("10.0.0.1") == (netlink.AF_INET, bytes([10, 0, 0, 1]))
    family, data = netlink.parse_address("fd00::1")
    assert (family, netlink.format_address(data)) == (netlink.AF_INET6, "fd00::1")
    assert netlink.format_mac(netlink.parse_mac("02:00:CA:FE:00:01")) == "02:00:ca:fe:00:01"
    with pytest.raises(OSError, match="illegal"):
        netlink.parse_address("10.0.0")


def test_uevent_is_parsed_and_foreign_messages_are_not() -> None:
    """The kernel's form is ACTION@DEVPATH and NUL separated pairs; libudev's own form is something else."""
    message = b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=block\0DEVNAME=vdb\0"
    assert uevent.parse(message)["DEVNAME"] == "vdb"
    assert uevent.parse(b"libudev\0\xfe\xed\xca\xfe") == {}
    assert uevent.parse(b"") == {}


def test_error_carries_the_kernels_words() -> None:
    """The extended acknowledgement's text is part of the error."""
    words = netlink.attribute(1, b"Invalid prefix for given prefix length\0")
    body = struct.pack("=i", -22) + struct.pack("=IHHII", 60, 24, 0, 1, 0) + words
    with pytest.raises(netlink.NetlinkError, match="Invalid prefix") as refused:
        netlink._raise_error(0x300, body)
    assert refused.value.errno == 22
