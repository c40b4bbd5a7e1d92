"""Message classes straight from serialized descriptors, through upb, without generated-code machinery.

Owns the one descriptor pool of the process (`POOL`). Generated `*_pb2.py` modules call `load()`; nobody else
does. The normal generated modules import about 30 ms of Python (`descriptor_pool`, `symbol_database`,
`typing`, `datetime` ...), ten times that in a cold interpreter of an emulated guest. This form takes 2 ms for
all messages.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_WELL_KNOWN_TYPES = "google.protobuf.internal.well_known_types"


def _import_upb() -> tuple[Any, Any]:
    """upb and the Message base class.

    When the first class is made, upb imports well_known_types (datetime, calendar, threading, typing) for the
    mixins of Timestamp and its like (upb, python/message.c: PyUpb_GetWktBases) and keeps what it found. We
    hand it an empty table and take the stand-in away again, so that whoever needs the real module can still
    import it.
    """
    from google._upb import _message
    from google.protobuf import message

    loaded = sys.modules.get(_WELL_KNOWN_TYPES)
    if loaded is None:
        stand_in = type(sys)(_WELL_KNOWN_TYPES)
        stand_in.WKTBASES = {}  # type: ignore[attr-defined]
        sys.modules[_WELL_KNOWN_TYPES] = stand_in
    try:
        _make_first_class(_message, message.Message)
    finally:
        if loaded is None:
            del sys.modules[_WELL_KNOWN_TYPES]
    return _message, message.Message


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
