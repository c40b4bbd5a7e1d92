"""Generated from agent/api/health.proto by agent/api/generate.py: do not edit."""

from agent.api import descriptors

descriptors.load(
    b'\n\x16agent/api/health.proto'
    b'\x12\x04grpc"\x1f\n\x0cCheckRequest\x12\x0f'
    b'\n\x07service\x18\x01 \x01(\t"\x8a\x01\n\x13Heal'
    b'thCheckResponse\x127\n\x06statu'
    b"s\x18\x01 \x01(\x0e2'.grpc.HealthChe"
    b'ckResponse.ServingStatus'
    b'":\n\rServingStatus\x12\x0b\n\x07UNK'
    b'NOWN\x10\x00\x12\x0b\n\x07SERVING\x10\x01\x12\x0f\n\x0bN'
    b'OT_SERVING\x10\x02"C\n\x14VersionC'
    b'heckResponse\x12\x14\n\x0cgrpc_ver'
    b'sion\x18\x01 \x01(\t\x12\x15\n\ragent_vers'
    b'ion\x18\x02 \x01(\t2{\n\x06Health\x126\n\x05C'
    b'heck\x12\x12.grpc.CheckRequest'
    b'\x1a\x19.grpc.HealthCheckRespo'
    b'nse\x129\n\x07Version\x12\x12.grpc.Ch'
    b'eckRequest\x1a\x1a.grpc.Versio'
    b'nCheckResponseb\x06proto3',
    globals(),
)
