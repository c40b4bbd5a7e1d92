"""Generated from shim/task/api/types.proto by agent/api/generate.py: do not edit."""

from agent.api import any_pb2  # noqa: F401
from agent.api import descriptors
from agent.api import timestamp_pb2  # noqa: F401

descriptors.load(
    b'\n\x19shim/task/api/types.pr'
    b'oto\x12\x0fhako.containerd\x1a\x19go'
    b'ogle/protobuf/any.proto\x1a'
    b'\x1fgoogle/protobuf/timesta'
    b'mp.proto"F\n\x05Mount\x12\x0c\n\x04typ'
    b'e\x18\x01 \x01(\t\x12\x0e\n\x06source\x18\x02 \x01(\t\x12'
    b'\x0e\n\x06target\x18\x03 \x01(\t\x12\x0f\n\x07optio'
    b'ns\x18\x04 \x03(\t">\n\x0bProcessInfo\x12'
    b'\x0b\n\x03pid\x18\x01 \x01(\r\x12"\n\x04info\x18\x02 \x01'
    b'(\x0b2\x14.google.protobuf.Any'
    b'"\x80\x01\n\x08Envelope\x12-\n\ttimesta'
    b'mp\x18\x01 \x01(\x0b2\x1a.google.protob'
    b'uf.Timestamp\x12\x11\n\tnamespac'
    b'e\x18\x02 \x01(\t\x12\r\n\x05topic\x18\x03 \x01(\t\x12#'
    b'\n\x05event\x18\x04 \x01(\x0b2\x14.google.p'
    b'rotobuf.Any"=\n\x0eForwardRe'
    b'quest\x12+\n\x08envelope\x18\x01 \x01(\x0b2'
    b'\x19.hako.containerd.Envelo'
    b'peb\x06proto3',
    globals(),
)
