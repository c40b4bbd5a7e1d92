"""Generated from shim/task/api/events.proto by agent/api/generate.py: do not edit."""

from agent.api import descriptors
from agent.api import timestamp_pb2  # noqa: F401
from shim.task.api import types_pb2  # noqa: F401

descriptors.load(
    b'\n\x1ashim/task/api/events.p'
    b'roto\x12\x16hako.containerd.ev'
    b'ents\x1a\x1fgoogle/protobuf/ti'
    b'mestamp.proto\x1a\x19shim/task'
    b'/api/types.proto"I\n\x06Task'
    b'IO\x12\r\n\x05stdin\x18\x01 \x01(\t\x12\x0e\n\x06std'
    b'out\x18\x02 \x01(\t\x12\x0e\n\x06stderr\x18\x03 \x01('
    b'\t\x12\x10\n\x08terminal\x18\x04 \x01(\x08"\xa7\x01\n\n'
    b'TaskCreate\x12\x14\n\x0ccontainer_'
    b'id\x18\x01 \x01(\t\x12\x0e\n\x06bundle\x18\x02 \x01(\t'
    b'\x12&\n\x06rootfs\x18\x03 \x03(\x0b2\x16.hako.'
    b'containerd.Mount\x12*\n\x02io\x18\x04'
    b' \x01(\x0b2\x1e.hako.containerd.e'
    b'vents.TaskIO\x12\x12\n\ncheckpoi'
    b'nt\x18\x05 \x01(\t\x12\x0b\n\x03pid\x18\x06 \x01(\r".\n'
    b'\tTaskStart\x12\x14\n\x0ccontainer_'
    b'id\x18\x01 \x01(\t\x12\x0b\n\x03pid\x18\x02 \x01(\r"\x7f\n'
    b'\nTaskDelete\x12\x14\n\x0ccontainer'
    b'_id\x18\x01 \x01(\t\x12\x0b\n\x03pid\x18\x02 \x01(\r\x12\x13'
    b'\n\x0bexit_status\x18\x03 \x01(\r\x12-\n\te'
    b'xited_at\x18\x04 \x01(\x0b2\x1a.google.'
    b'protobuf.Timestamp\x12\n\n\x02id'
    b'\x18\x05 \x01(\t"}\n\x08TaskExit\x12\x14\n\x0cco'
    b'ntainer_id\x18\x01 \x01(\t\x12\n\n\x02id\x18\x02'
    b' \x01(\t\x12\x0b\n\x03pid\x18\x03 \x01(\r\x12\x13\n\x0bexi'
    b't_status\x18\x04 \x01(\r\x12-\n\texited'
    b'_at\x18\x05 \x01(\x0b2\x1a.google.proto'
    b'buf.Timestamp"\x1f\n\x07TaskOOM'
    b'\x12\x14\n\x0ccontainer_id\x18\x01 \x01(\t"6'
    b'\n\rTaskExecAdded\x12\x14\n\x0cconta'
    b'iner_id\x18\x01 \x01(\t\x12\x0f\n\x07exec_id'
    b'\x18\x02 \x01(\t"E\n\x0fTaskExecStarte'
    b'd\x12\x14\n\x0ccontainer_id\x18\x01 \x01(\t\x12'
    b'\x0f\n\x07exec_id\x18\x02 \x01(\t\x12\x0b\n\x03pid\x18'
    b'\x03 \x01(\r""\n\nTaskPaused\x12\x14\n\x0cc'
    b'ontainer_id\x18\x01 \x01(\t"#\n\x0bTas'
    b'kResumed\x12\x14\n\x0ccontainer_id'
    b'\x18\x01 \x01(\tb\x06proto3',
    globals(),
)
