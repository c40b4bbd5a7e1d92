"""JSON objects (OCI config.json, process.json, resources) into protobuf messages, by the fields' JSON names.

Pure: knows descriptors and nothing of the OCI specification, whose keys stand in oci.proto as json_name.
Unknown keys are ignored and null means absent, as the OCI specification wants. The host calls it; the guest
gets messages.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from google.protobuf.message import Message

# google.protobuf.descriptor.FieldDescriptor.CPPTYPE_* and TYPE_BYTES
_DOUBLE, _FLOAT, _BOOL, _STRING, _MESSAGE = 5, 6, 7, 9, 10
_TYPE_BYTES = 12

_fields_by_json_name: dict[str, dict[str, Any]] = {}


class FieldError(ValueError):
    """A value does not fit its field. `field`: its JSON path ("process.rlimits[0].hard"); `reason`: why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def fill(message: Message, mapping: Mapping[str, Any], path: str = "") -> None:
    """Set every field of the message that the mapping has a value for; merges into what it holds.

    `path` names the mapping itself in errors. Raises FieldError for a value of the wrong type or range.
    """
    if not isinstance(mapping, dict):
        raise FieldError(path or ".", f"must be an object, not {_kind(mapping)}")
    fields = _fields(message.DESCRIPTOR)
    for key, value in mapping.items():
        field = fields.get(key)
        if field is not None and value is not None:
            _set(message, field, value, f"{path}.{key}" if path else key)


def _fields(descriptor: Any) -> dict[str, Any]:
    fields = _fields_by_json_name.get(descriptor.full_name)
    if fields is None:
        fields = {field.json_name: field for field in descriptor.fields}
        _fields_by_json_name[descriptor.full_name] = fields
    return fields


def _set(message: Message, field: Any, value: Any, path: str) -> None:
    if field.is_repeated:
        _fill_repeated(getattr(message, field.name), field, value, path)
    elif field.cpp_type == _MESSAGE:
        inner = getattr(message, field.name)
        inner.SetInParent()
        fill(inner, value, path)
    else:
        try:
            setattr(message, field.name, _scalar(field, value, path))
        except ValueError as exc:
            raise FieldError(path, _reason(exc)) from exc


def _fill_repeated(target: Any, field: Any, value: Any, path: str) -> None:
    """A list, or a map, which only its container tells apart cheaply: options would load descriptor_pb2 (20 ms)."""
    if hasattr(target, "GetEntryClass"):
        _fill_map(target, field.message_type, value, path)
    else:
        _fill_list(target, field, value, path)


def _fill_list(target: Any, field: Any, value: Any, path: str) -> None:
    if not isinstance(value, list):
        raise FieldError(path, f"must be an array, not {_kind(value)}")
    for index, item in enumerate(value):
        where = f"{path}[{index}]"
        if field.cpp_type == _MESSAGE:
            fill(target.add(), item, where)
            continue
        try:
            target.append(_scalar(field, item, where))
        except ValueError as exc:
            raise FieldError(where, _reason(exc)) from exc


def _fill_map(target: Any, entry: Any, value: Any, path: str) -> None:
    if not isinstance(value, dict):
        raise FieldError(path, f"must be an object, not {_kind(value)}")
    value_field = entry.fields_by_name["value"]
    for key, item in value.items():
        where = f"{path}.{key}"
        if value_field.cpp_type == _MESSAGE:
            fill(target[key], item if item is not None else {}, where)
        elif item is not None:
            try:
                target[key] = _scalar(value_field, item, where)
            except ValueError as exc:
                raise FieldError(where, _reason(exc)) from exc


def _scalar(field: Any, value: Any, path: str) -> Any:
    """The value as the field wants it; ints are range-checked by protobuf itself (ValueError)."""
    if field.cpp_type == _STRING and field.type == _TYPE_BYTES and isinstance(value, str):
        return _decode_base64(value, path)
    if not isinstance(value, _python_type(field)) or (isinstance(value, bool) and field.cpp_type != _BOOL):
        raise FieldError(path, f"must be {_expected(field)}, not {_kind(value)}")
    return value


def _decode_base64(value: str, path: str) -> bytes:
    import binascii

    try:
        return binascii.a2b_base64(value)
    except binascii.Error as exc:
        raise FieldError(path, f"must be base64: {exc}") from exc


def _python_type(field: Any) -> tuple[type, ...]:
    if field.cpp_type == _STRING:
        return (str,)
    if field.cpp_type == _BOOL:
        return (bool,)
    if field.cpp_type in (_DOUBLE, _FLOAT):
        return (int, float)
    return (int,)


def _expected(field: Any) -> str:
    if field.cpp_type == _STRING:
        return "a string"
    if field.cpp_type == _BOOL:
        return "true or false"
    return "a number" if field.cpp_type in (_DOUBLE, _FLOAT) else "an integer"


def _kind(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"the number {value!r}"
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _reason(exc: ValueError) -> str:
    return exc.reason if isinstance(exc, FieldError) else str(exc)
