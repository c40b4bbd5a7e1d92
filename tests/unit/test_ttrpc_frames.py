"""ttrpc frames: bytes in, frames out."""

from __future__ import annotations

import pytest

from agent.ttrpc import frames
from agent.ttrpc.frames import Decoder, Frame, encode


def triple(frame: Frame) -> tuple[int, int, int, bytes, bool]:
    return frame.stream_id, frame.type, frame.flags, frame.payload, frame.oversize


def test_header_is_length_id_type_flags_in_big_endian() -> None:
    """A frame on the wire is u32 length, u32 stream id, u8 type, u8 flags, body."""
    assert encode(1, frames.REQUEST, 0, b"hi") == bytes.fromhex("00000002 00000001 01 00") + b"hi"
    assert encode(0x01020304, frames.DATA, 0x05, b"") == bytes.fromhex("00000000 01020304 03 05")


def test_frames_survive_any_cutting() -> None:
    """The decoder gives the same frames however the stream was cut."""
    stream = encode(1, 1, 0, b"a" * 300) + encode(3, 1, 1, b"") + encode(5, 2, 0, b"z")
    expected = [(1, 1, 0, b"a" * 300, False), (3, 1, 1, b"", False), (5, 2, 0, b"z", False)]
    for size in (1, 7, 10, 11, len(stream)):
        decoder = Decoder()
        chunks = (stream[i : i + size] for i in range(0, len(stream), size))
        assert [triple(frame) for chunk in chunks for frame in decoder.feed(chunk)] == expected
        assert not decoder.incomplete


def test_oversize_body_is_reported_and_skipped() -> None:
    """A body over 4 MiB is announced at once, discarded as it comes, and the next frame is intact."""
    length = frames.MAX_PAYLOAD + 1
    decoder = Decoder()
    header = length.to_bytes(4, "big") + bytes.fromhex("00000007 01 00")
    assert [triple(frame) for frame in decoder.feed(header)] == [(7, 1, 0, b"", True)]
    body = b"x" * 65536
    left = length
    while left > len(body):
        assert decoder.feed(body) == []
        assert len(decoder._buffer) == 0
        left -= len(body)
    assert decoder.incomplete
    assert [triple(frame) for frame in decoder.feed(body[:left] + encode(9, 1, 0, b"ok"))] == [
        (9, 1, 0, b"ok", False)
    ]


def test_payload_at_the_limit_passes() -> None:
    """4 MiB exactly is allowed."""
    payload = bytes(frames.MAX_PAYLOAD)
    [frame] = Decoder().feed(encode(1, 1, 0, payload))
    assert frame.payload == payload


def test_encoding_over_the_limit_is_refused() -> None:
    """We never send what no peer would take."""
    with pytest.raises(ValueError, match="over ttrpc's limit"):
        encode(1, 1, 0, bytes(frames.MAX_PAYLOAD + 1))


def test_end_within_a_frame_is_visible() -> None:
    """A truncated frame yields nothing and is known to be incomplete."""
    decoder = Decoder()
    assert decoder.feed(encode(1, 1, 0, b"abcd")[:-1]) == []
    assert decoder.incomplete
