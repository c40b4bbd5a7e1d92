"""Generated from google/protobuf/empty.proto by agent/api/generate.py: do not edit."""

from agent.api import descriptors

descriptors.load(
    b'\n\x1bgoogle/protobuf/empty.'
    b'proto\x12\x0fgoogle.protobuf"\x07'
    b'\n\x05EmptyB}\n\x13com.google.pr'
    b'otobufB\nEmptyProtoP\x01Z.go'
    b'ogle.golang.org/protobuf'
    b'/types/known/emptypb\xf8\x01\x01\xa2'
    b'\x02\x03GPB\xaa\x02\x1eGoogle.Protobuf.'
    b'WellKnownTypesb\x06proto3',
    globals(),
)
