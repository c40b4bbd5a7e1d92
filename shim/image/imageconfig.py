"""How an image wants to be run, as frozen data. Pure.

Owns: reading the OCI (and Docker's) image config. Must not know: the OCI runtime spec. Called by store.py;
read by runspec and the CLI.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from shim.image.errors import NotAnImage


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The "config" object of an image (image-spec, config.md). `entrypoint` None: none was given."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    stop_signal: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageDescription:
    """What the image's config blob says: for which machine, of which layers, how to run."""

    architecture: str
    os: str
    diff_ids: tuple[str, ...]
    config: ImageConfig


def describe(blob: bytes, reference: str) -> ImageDescription:
    """Read a config blob. Raises NotAnImage naming the field that has the wrong type."""
    try:
        document = json.loads(blob)
    except ValueError as exc:
        raise _bad(reference, f"its config is not JSON: {exc}") from exc
    top = _Fields(document, reference, "")
    rootfs = top.inner("rootfs")
    return ImageDescription(
        architecture=top.text("architecture"),
        os=top.text("os"),
        diff_ids=rootfs.texts("diff_ids"),
        config=_config(top.inner("config")),
    )


def _config(fields: _Fields) -> ImageConfig:
    return ImageConfig(
        entrypoint=fields.texts("Entrypoint") if fields.has("Entrypoint") else None,
        cmd=fields.texts("Cmd"),
        env=fields.texts("Env"),
        workdir=fields.text("WorkingDir"),
        user=fields.text("User"),
        stop_signal=fields.text("StopSignal"),
        exposed_ports=tuple(sorted(fields.mapping("ExposedPorts"))),
        volumes=tuple(sorted(fields.mapping("Volumes"))),
        labels={name: str(value) for name, value in fields.mapping("Labels").items()},
    )


class _Fields:
    """Typed access to a JSON object whose author is not trusted; null and a missing key are the same."""

    def __init__(self, value: object, reference: str, path: str) -> None:
        if value is not None and not isinstance(value, dict):
            raise _bad(reference, f"{path or 'its config'} is not an object")
        self._value: dict[str, Any] = value or {}
        self._reference, self._path = reference, path

    def has(self, key: str) -> bool:
        return self._value.get(key) is not None

    def inner(self, key: str) -> _Fields:
        return _Fields(self._value.get(key), self._reference, self._path + key + ".")

    def mapping(self, key: str) -> dict[str, Any]:
        return self.inner(key)._value

    def text(self, key: str) -> str:
        value = self._value.get(key)
        if value is None:
            return ""
        return self._text(value, key)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._value.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise _bad(self._reference, f"{self._path}{key} is not a list")
        return tuple(self._text(item, key) for item in value)

    def _text(self, value: object, key: str) -> str:
        if not isinstance(value, str) or "\0" in value:
            raise _bad(self._reference, f"{self._path}{key} is not a text")
        return value


def _bad(reference: str, reason: str) -> NotAnImage:
    return NotAnImage(reason, step="read image config", object=reference)
