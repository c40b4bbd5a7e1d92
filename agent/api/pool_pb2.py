"""Generated from agent/api/pool.proto by agent/api/generate.py: do not edit."""

from agent.api import agent_pb2  # noqa: F401
from agent.api import descriptors
from agent.api import empty_pb2  # noqa: F401

descriptors.load(
    b'\n\x14agent/api/pool.proto\x12\x04'
    b'hako\x1a\x1bgoogle/protobuf/em'
    b'pty.proto\x1a\x15agent/api/age'
    b'nt.proto"H\n\x0fExerciseRequ'
    b'est\x12\x1f\n\x08storages\x18\x01 \x03(\x0b2\r.'
    b'grpc.Storage\x12\x0e\n\x06rootfs\x18\x02'
    b' \x01(\tJ\x04\x08\x03\x10\x042A\n\x04Pool\x129\n\x08Ex'
    b'ercise\x12\x15.hako.ExerciseRe'
    b'quest\x1a\x16.google.protobuf.'
    b'Emptyb\x06proto3',
    globals(),
)
