"""ttrpc's frames, sans-I/O: bytes in, frames out. Knows no socket and no meaning of a payload.

A frame is a 10-byte header, big-endian: u32 length of the body, u32 stream id, u8 type, u8 flags; then the
body.
"""

from __future__ import annotations

import struct

REQUEST = 1
RESPONSE = 2
DATA = 3

REMOTE_CLOSED = 0x01
REMOTE_OPEN = 0x02
NO_DATA = 0x04

MAX_PAYLOAD = 4 << 20

_HEADER = struct.Struct(">IIBB")
HEADER_SIZE = _HEADER.size


class Frame:
    """One frame. `oversize`: its body is over MAX_PAYLOAD and is skipped as it comes; `payload` is empty."""

    __slots__ = ("flags", "oversize", "payload", "stream_id", "type")

    def __init__(
        self, stream_id: int, type: int, flags: int, payload: bytes, *, oversize: bool = False
    ) -> None:
        self.stream_id = stream_id
        self.type = type
        self.flags = flags
        self.payload = payload
        self.oversize = oversize


def encode(stream_id: int, type: int, flags: int, payload: bytes) -> bytes:
    """The bytes of one frame. Raises ValueError for a payload that no peer would take."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"payload of {len(payload)} bytes is over ttrpc's limit of {MAX_PAYLOAD}")
    return _HEADER.pack(len(payload), stream_id, type, flags) + payload


class Decoder:
    """Cuts a byte stream into frames; holds at most one incomplete frame of MAX_PAYLOAD bytes."""

    __slots__ = ("_buffer", "_skip")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, in order; an oversize one as soon as its header is seen."""
        whole = self._whole(data) if not self._buffer and not self._skip else None
        if whole is not None:
            return [whole]
        frames: list[Frame] = []
        self._buffer += data
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _whole(self, data: bytes) -> Frame | None:
        """The frame that `data` is exactly, as when a peer calls and waits for the answer; it is not copied twice."""
        if len(data) < HEADER_SIZE:
            return None
        length, stream_id, type, flags = _HEADER.unpack_from(data)
        if length != len(data) - HEADER_SIZE or length > MAX_PAYLOAD:
            return None
        return Frame(stream_id, type, flags, data[HEADER_SIZE:])

    @property
    def incomplete(self) -> bool:
        """True in the middle of a frame: a connection that ends now was cut off."""
        return bool(self._buffer) or self._skip > 0

    def _next(self) -> Frame | None:
        if self._skip and not self._skipped():
            return None
        buffer = self._buffer
        if len(buffer) < HEADER_SIZE:
            return None
        length, stream_id, type, flags = _HEADER.unpack_from(buffer)
        if length > MAX_PAYLOAD:
            del buffer[:HEADER_SIZE]
            self._skip = length
            return Frame(stream_id, type, flags, b"", oversize=True)
        end = HEADER_SIZE + length
        if len(buffer) < end:
            return None
        payload = bytes(buffer[HEADER_SIZE:end])
        del buffer[:end]
        return Frame(stream_id, type, flags, payload)

    def _skipped(self) -> bool:
        """Drop what is there of an oversize body; True when all of it has gone."""
        drop = min(self._skip, len(self._buffer))
        del self._buffer[:drop]
        self._skip -= drop
        return self._skip == 0
