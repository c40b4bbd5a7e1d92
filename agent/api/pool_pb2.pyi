# Generated from agent/api/pool.proto by agent/api/generate.py: do not edit.
from agent.api import empty_pb2 as _empty_pb2
from agent.api import agent_pb2 as _agent_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExerciseRequest(_message.Message):
    __slots__ = ("storages", "rootfs")
    STORAGES_FIELD_NUMBER: _ClassVar[int]
    ROOTFS_FIELD_NUMBER: _ClassVar[int]
    storages: _containers.RepeatedCompositeFieldContainer[_agent_pb2.Storage]
    rootfs: str
    def __init__(self, storages: _Optional[_Iterable[_Union[_agent_pb2.Storage, _Mapping[str, object]]]] = ..., rootfs: _Optional[str] = ...) -> None: ...
