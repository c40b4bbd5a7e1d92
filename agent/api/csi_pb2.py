"""Generated from agent/api/csi.proto by agent/api/generate.py: do not edit."""

from agent.api import descriptors

descriptors.load(
    b'\n\x13agent/api/csi.proto\x12\x04g'
    b'rpc"\x8f\x01\n\x0bVolumeUsage\x12\x11\n\ta'
    b'vailable\x18\x01 \x01(\x04\x12\r\n\x05total\x18'
    b'\x02 \x01(\x04\x12\x0c\n\x04used\x18\x03 \x01(\x04\x12$\n\x04u'
    b'nit\x18\x04 \x01(\x0e2\x16.grpc.VolumeU'
    b'sage.Unit"*\n\x04Unit\x12\x0b\n\x07UNK'
    b'NOWN\x10\x00\x12\t\n\x05BYTES\x10\x01\x12\n\n\x06INO'
    b'DES\x10\x02"4\n\x0fVolumeCondition'
    b'\x12\x10\n\x08abnormal\x18\x01 \x01(\x08\x12\x0f\n\x07me'
    b'ssage\x18\x02 \x01(\t"h\n\x13VolumeSta'
    b'tsResponse\x12 \n\x05usage\x18\x01 \x03('
    b'\x0b2\x11.grpc.VolumeUsage\x12/\n\x10'
    b'volume_condition\x18\x02 \x01(\x0b2\x15'
    b'.grpc.VolumeConditionb\x06p'
    b'roto3',
    globals(),
)
