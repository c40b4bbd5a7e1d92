"""Message classes straight from serialized descriptors, through upb, without generated-code machinery.

Owns the one descriptor pool of the process (`POOL`). Generated `*_pb2.py` modules call `load()`; nobody else
does. The normal generated modules import about 30 ms of Python (`descriptor_pool`, `symbol_database`,
`typing`, `datetime` ...), ten times that in a cold interpreter of an emulated guest. This form takes 2 ms for
all messages.
"""

from __future__ import annotations

import _collections_abc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_WELL_KNOWN_TYPES = "google.protobuf.internal.well_known_types"


def _import_upb() -> tuple[Any, Any]:
    """upb and the Message base class, kept from importing what it does not need.

    Loading, upb imports collections, to register its containers and for one namedtuple. When the first class is made,
    it imports well_known_types (datetime, calendar, threading, typing) for the mixins of Timestamp and its like
    (python/message.c: PyUpb_GetWktBases), and keeps what it found. It gets stand-ins, which are taken away again, so
    that whoever needs the real modules can still import them.
    """
    stand_ins = {
        "collections": _module("collections", namedtuple=_namedtuple),
        "collections.abc": _collections_abc,  # it is this module (collections/__init__.py)
        _WELL_KNOWN_TYPES: _module(_WELL_KNOWN_TYPES, WKTBASES={}),
    }
    stand_ins = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        from google._upb import _message
        from google.protobuf import message

        _make_first_class(_message, message.Message)
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return _message, message.Message


def _module(name: str, **contents: object) -> Any:
    module = type(sys)(name)
    vars(module).update(contents)
    return module


def _namedtuple(name: str, fields: list[str]) -> Any:
    """What upb's UnknownField needs of collections.namedtuple."""

    def new(cls: type[tuple[Any, ...]], *values: object) -> Any:
        return tuple.__new__(cls, values)

    def getter(index: int) -> property:
        return property(lambda values: values[index])

    getters = {field: getter(index) for index, field in enumerate(fields)}
    return type(name, (tuple,), {"__slots__": (), "__new__": new, **getters})


def _make_first_class(upb: Any, base: Any) -> None:
    file = upb.DescriptorPool().AddSerializedFile(b'\n\x05probe"\x07\n\x05Probe')
    descriptor = file.message_types_by_name["Probe"]
    upb.MessageMeta("Probe", (base,), {"DESCRIPTOR": descriptor, "__module__": __name__})


_message, _Message = _import_upb()

POOL = _message.DescriptorPool()


def load(serialized: bytes, module: dict[str, Any]) -> None:
    """Add one serialized FileDescriptorProto to the pool, its classes and enum values to a module's globals.

    Files that it imports must have been loaded before (the generated module imports their modules first).
    Raises TypeError if the bytes are no valid descriptor or an import is missing.
    """
    file = POOL.AddSerializedFile(serialized)
    module["DESCRIPTOR"] = file
    for descriptor in file.message_types_by_name.values():
        module[descriptor.name] = _make_class(descriptor, module["__name__"])
    for enum in file.enum_types_by_name.values():
        module.update((value.name, value.number) for value in enum.values)


def _make_class(descriptor: Any, module_name: str) -> Any:
    """The class of one message and of those nested in it (upb raises SystemError where one lacks)."""
    for nested in descriptor.nested_types:
        _make_class(nested, module_name)
    namespace = {"DESCRIPTOR": descriptor, "__module__": module_name}
    return _message.MessageMeta(descriptor.name, (_Message,), namespace)
