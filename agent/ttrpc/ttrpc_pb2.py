"""Generated from agent/ttrpc/ttrpc.proto by agent/api/generate.py: do not edit."""

from agent.api import descriptors

descriptors.load(
    b'\n\x17agent/ttrpc/ttrpc.prot'
    b'o\x12\nhako.ttrpc"y\n\x07Request'
    b'\x12\x0f\n\x07service\x18\x01 \x01(\t\x12\x0e\n\x06met'
    b'hod\x18\x02 \x01(\t\x12\x0f\n\x07payload\x18\x03 \x01'
    b'(\x0c\x12\x14\n\x0ctimeout_nano\x18\x04 \x01(\x03'
    b'\x12&\n\x08metadata\x18\x05 \x03(\x0b2\x14.hak'
    b'o.ttrpc.KeyValue"?\n\x08Resp'
    b'onse\x12"\n\x06status\x18\x01 \x01(\x0b2\x12.h'
    b'ako.ttrpc.Status\x12\x0f\n\x07payl'
    b'oad\x18\x02 \x01(\x0c"8\n\x06Status\x12\x0c\n\x04c'
    b'ode\x18\x01 \x01(\x05\x12\x0f\n\x07message\x18\x02 \x01'
    b'(\t\x12\x0f\n\x07details\x18\x03 \x03(\x0c"&\n\x08K'
    b'eyValue\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05'
    b'value\x18\x02 \x01(\tb\x06proto3',
    globals(),
)
