"""Settings that a pod changes for itself by annotations, where the administrator allows it. Pure.

    io.hako.config.SECTION.KEY = value      for example io.hako.config.hypervisor.default_memory = "512"

Owns: which keys can be allowed at all (numbers, switches and choices; never paths, programs or arguments,
which would let a pod name what runs on the host: CVE-2020-27151, GHSA-rr59-xxvx-96qr) and that only those
in `[runtime] enable_annotations` are. Must not know: what a key means. Called by sandbox.py for the first
container of a pod.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from shim import config as configuration
from shim.config import Config
from shim.errors import ConfigError

PREFIX = "io.hako.config."
NEVER = ("runtime.enable_annotations",)


def apply(config: Config, annotations: Mapping[str, str]) -> Config:
    """The configuration for this pod. Raises ConfigError for an annotation that is not allowed or wrong."""
    wanted = {key: text for key, text in annotations.items() if key.startswith(PREFIX)}
    if not wanted:
        return config
    table: dict[str, dict[str, Any]] = msgspec.to_builtins(config)
    for annotation, text in sorted(wanted.items()):
        name = annotation.removeprefix(PREFIX)
        if name not in config.runtime.enable_annotations:
            allowed = ", ".join(config.runtime.enable_annotations) or "none"
            raise ConfigError("this annotation is not enabled", key=annotation, allowed=allowed)
        if not can_be_enabled(name):
            raise ConfigError("this setting can never come from an annotation", key=annotation)
        section, _, key = name.partition(".")
        table[section][key] = _value(text)
    return configuration.parse(table)


def can_be_enabled(name: str) -> bool:
    """Whether SECTION.KEY exists and is a number, a switch or a choice."""
    section, _, key = name.partition(".")
    kinds = get_type_hints(Config, include_extras=True)
    fields = get_type_hints(kinds[section], include_extras=True) if section in kinds else {}
    if key not in fields or name in NEVER:
        return False
    kind = fields[key]
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return kind in (int, float, bool) or get_origin(kind) is Literal


def _value(text: str) -> Any:
    """The annotation's text as a number or switch if it reads like one, else as a word."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float, bool)) else text
