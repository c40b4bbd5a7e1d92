"""Generated from agent/api/pool.proto by agent/api/generate.py: do not edit."""

from agent.api import agent_pb2  # noqa: F401
from agent.api import descriptors
from agent.api import empty_pb2  # noqa: F401
from agent.api import oci_pb2  # noqa: F401

descriptors.load(
    b'\n\x14agent/api/pool.proto\x12\x04'
    b'hako\x1a\x1bgoogle/protobuf/em'
    b'pty.proto\x1a\x15agent/api/age'
    b'nt.proto\x1a\x13agent/api/oci.'
    b'proto"g\n\x0fExerciseRequest'
    b'\x12\x1f\n\x08storages\x18\x01 \x03(\x0b2\r.grp'
    b'c.Storage\x12\x0e\n\x06rootfs\x18\x02 \x01('
    b'\t\x12#\n\x07seccomp\x18\x03 \x03(\x0b2\x12.grp'
    b'c.LinuxSeccomp2A\n\x04Pool\x129'
    b'\n\x08Exercise\x12\x15.hako.Exerci'
    b'seRequest\x1a\x16.google.proto'
    b'buf.Emptyb\x06proto3',
    globals(),
)
