# Generated from agent/api/trace.proto by agent/api/generate.py: do not edit.
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Span(_message.Message):
    __slots__ = ("name", "object", "kind", "begin", "end", "guest_begin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    GUEST_BEGIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    object: str
    kind: str
    begin: int
    end: int
    guest_begin: int
    def __init__(self, name: _Optional[str] = ..., object: _Optional[str] = ..., kind: _Optional[str] = ..., begin: _Optional[int] = ..., end: _Optional[int] = ..., guest_begin: _Optional[int] = ...) -> None: ...

class SpansRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SpansResponse(_message.Message):
    __slots__ = ("spans", "now")
    SPANS_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    now: int
    def __init__(self, spans: _Optional[_Iterable[_Union[Span, _Mapping[str, object]]]] = ..., now: _Optional[int] = ...) -> None: ...
