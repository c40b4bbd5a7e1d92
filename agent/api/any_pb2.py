"""Generated from google/protobuf/any.proto by agent/api/generate.py: do not edit."""

from agent.api import descriptors

descriptors.load(
    b'\n\x19google/protobuf/any.pr'
    b'oto\x12\x0fgoogle.protobuf"&\n\x03'
    b'Any\x12\x10\n\x08type_url\x18\x01 \x01(\t\x12\r\n'
    b'\x05value\x18\x02 \x01(\x0cBv\n\x13com.goog'
    b'le.protobufB\x08AnyProtoP\x01Z'
    b',google.golang.org/proto'
    b'buf/types/known/anypb\xa2\x02\x03'
    b'GPB\xaa\x02\x1eGoogle.Protobuf.We'
    b'llKnownTypesb\x06proto3',
    globals(),
)
