"""Generated from agent/api/trace.proto by agent/api/generate.py: do not edit."""

from agent.api import descriptors

descriptors.load(
    b'\n\x15agent/api/trace.proto\x12'
    b'\x04hako"c\n\x04Span\x12\x0c\n\x04name\x18\x01 '
    b'\x01(\t\x12\x0e\n\x06object\x18\x02 \x01(\t\x12\x0c\n\x04k'
    b'ind\x18\x03 \x01(\t\x12\r\n\x05begin\x18\x04 \x01(\x04'
    b'\x12\x0b\n\x03end\x18\x05 \x01(\x04\x12\x13\n\x0bguest_b'
    b'egin\x18\x06 \x01(\x04"\x0e\n\x0cSpansReque'
    b'st"7\n\rSpansResponse\x12\x19\n\x05s'
    b'pans\x18\x01 \x03(\x0b2\n.hako.Span\x12\x0b'
    b'\n\x03now\x18\x02 \x01(\x0429\n\x05Trace\x120\n\x05'
    b'Spans\x12\x12.hako.SpansReques'
    b't\x1a\x13.hako.SpansResponseb\x06'
    b'proto3',
    globals(),
)
