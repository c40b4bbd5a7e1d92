"""Generated from google/protobuf/timestamp.proto by agent/api/generate.py: do not edit."""

from agent.api import descriptors

descriptors.load(
    b'\n\x1fgoogle/protobuf/timest'
    b'amp.proto\x12\x0fgoogle.protob'
    b'uf"+\n\tTimestamp\x12\x0f\n\x07secon'
    b'ds\x18\x01 \x01(\x03\x12\r\n\x05nanos\x18\x02 \x01(\x05B'
    b'\x85\x01\n\x13com.google.protobufB'
    b'\x0eTimestampProtoP\x01Z2googl'
    b'e.golang.org/protobuf/ty'
    b'pes/known/timestamppb\xf8\x01\x01'
    b'\xa2\x02\x03GPB\xaa\x02\x1eGoogle.Protobuf'
    b'.WellKnownTypesb\x06proto3',
    globals(),
)
