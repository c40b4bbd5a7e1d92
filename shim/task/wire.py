"""Protobuf by hand for the few tiny messages of `start`, `delete` and `-info`.

Owns: varints and fields of the wire format. Must not know: any schema; the daemon uses the generated messages
instead. It exists because loading a protobuf runtime costs more than all the rest of `start`. No imports.
"""

from __future__ import annotations


def varint(value: int) -> bytes:
    """`value` (64 bits, negative in two's complement) as a varint."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(number: int, value: int) -> bytes:
    """A varint field, nothing for the default."""
    return varint(number << 3) + varint(value) if value else b""


def blob(number: int, value: bytes | str) -> bytes:
    """A length-delimited field (string, bytes, message), nothing for the default."""
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data if data else b""


def fields(data: bytes) -> dict[int, list[int | bytes]]:
    """All fields of a message by number: varints as int, others as bytes. Raises ValueError if it is none."""
    found: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        value: int | bytes
        if key & 7 == 0:
            value, at = _read_varint(data, at)
        else:
            size, at = _size_of(key & 7, data, at)
            if at + size > len(data):
                raise ValueError("truncated protobuf message")
            value, at = data[at : at + size], at + size
        if key >> 3 == 0:
            raise ValueError("protobuf field number 0")
        found.setdefault(key >> 3, []).append(value)
    return found


def text(message: dict[int, list[int | bytes]], number: int) -> str:
    """The last value of a string field, "" if absent. Raises ValueError if it is not text."""
    value = message.get(number, [b""])[-1]
    if isinstance(value, int):
        raise ValueError(f"field {number} is a number")
    return value.decode()


def number_of(message: dict[int, list[int | bytes]], number: int) -> int:
    """The last value of a varint field, 0 if absent."""
    value = message.get(number, [0])[-1]
    return value if isinstance(value, int) else 0


def _size_of(wire_type: int, data: bytes, at: int) -> tuple[int, int]:
    if wire_type == 2:
        return _read_varint(data, at)
    if wire_type in (1, 5):
        return (8 if wire_type == 1 else 4), at
    raise ValueError(f"protobuf wire type {wire_type}")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise ValueError("truncated protobuf varint")
