"""The runtime options that an engine hands to `start`: on its stdin, in one of two envelopes.

Owns: reading stdin and taking both envelopes apart (containerd <= 2.2: google.protobuf.Any, nothing at all,
or CRI-O's empty stdin; containerd >= 2.3: BootstrapParams with the Any in an extension). Must not know:
what an option does. An unknown type URL is no error: Docker sends runc's options to every runtime.
"""

from __future__ import annotations

import os
import stat

from shim.task import wire

RUNC_OPTIONS = "containerd.runc.v1.Options"
RUNTIME_OPTIONS = "runtimeoptions.v1.Options"
STDIN_LIMIT = 4 << 20


class Options:
    """What matters to us: `config_path` (host path) and `shim_cgroup` (cgroup path), "" if not given."""

    __slots__ = ("config_path", "shim_cgroup")

    def __init__(self, config_path: str = "", shim_cgroup: str = "") -> None:
        self.config_path = config_path
        self.shim_cgroup = shim_cgroup


def read_stdin() -> bytes:
    """All of stdin when an engine wrote something there; b"" for a terminal or a device."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return b""
    if stat.S_ISCHR(mode):
        return b""
    data = b""
    while len(data) < STDIN_LIMIT:
        chunk = os.read(0, 65536)
        if not chunk:
            break
        data += chunk
    return data


def parse_stdin(data: bytes, container_id: str, namespace: str) -> Options:
    """Options from `start`'s stdin. BootstrapParams decode as an Any too, hence the look at the id."""
    try:
        message = wire.fields(data)
        if wire.text(message, 1) == container_id and wire.text(message, 2) == namespace:
            extensions = [wire.fields(item) for item in message.get(8, []) if isinstance(item, bytes)]
            values = [extension.get(1, [b""])[-1] for extension in extensions]
            return merge([parse_any(value) for value in values if isinstance(value, bytes)])
        return parse_any(data)
    except (ValueError, UnicodeDecodeError):
        return Options()


def parse_any(data: bytes) -> Options:
    """Options from a serialized google.protobuf.Any."""
    message = wire.fields(data)
    value = message.get(2, [b""])[-1]
    return parse(wire.text(message, 1), value if isinstance(value, bytes) else b"")


def parse(type_url: str, value: bytes) -> Options:
    """Options of either known type; empty for any other. Raises ValueError if the value is no message."""
    name = type_url.rpartition("/")[2]
    message = wire.fields(value) if name in (RUNC_OPTIONS, RUNTIME_OPTIONS) else {}
    if name == RUNC_OPTIONS:
        return Options(shim_cgroup=wire.text(message, 3))
    if name == RUNTIME_OPTIONS:
        return Options(config_path=wire.text(message, 2))
    return Options()


def merge(parts: list[Options]) -> Options:
    """The first value given for each option."""
    return Options(
        next((part.config_path for part in parts if part.config_path), ""),
        next((part.shim_cgroup for part in parts if part.shim_cgroup), ""),
    )
