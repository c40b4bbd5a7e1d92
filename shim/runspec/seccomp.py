"""A seccomp profile in Docker's form made into the OCI one for a given container. Pure but for reading the
file.

Owns: includes, excludes, archMap. Must not know: BPF (the agent compiles), the spec around it. Called by
spec.py. The default profile is seccomp-default.json beside this file, in the same form as users' own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from typing import Any

from shim.errors import HakoError

DEFAULT_PROFILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "seccomp-default.json")
UNCONFINED = "unconfined"
STEP = "seccomp profile"

# machine of uname(2): the names that profiles use for it, libseccomp's and Go's
MACHINES = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
    "s390x": ("SCMP_ARCH_S390X", "s390x"),
}
KEPT_TOP = ("defaultAction", "defaultErrnoRet", "flags", "listenerPath", "listenerMetadata")
KEPT_ARGUMENT = ("index", "value", "valueTwo", "op")


def load(choice: str) -> dict[str, Any] | None:
    """The profile for "" (the default), "unconfined" (None) or a host path. Raises HakoError."""
    if choice == UNCONFINED:
        return None
    path = choice or DEFAULT_PROFILE
    try:
        with open(path, encoding="utf-8") as file:
            profile = json.load(file)
    except (OSError, ValueError) as exc:
        raise HakoError(getattr(exc, "strerror", None) or str(exc), step=STEP, object=path) from exc
    if not isinstance(profile, dict) or "defaultAction" not in profile:
        raise HakoError("it has no defaultAction", step=STEP, object=path)
    return profile


def resolve(
    profile: dict[str, Any], capabilities: Collection[str], machine: str, kernel: tuple[int, int]
) -> dict[str, Any]:
    """The OCI linux.seccomp of a container with these (bounding) capabilities on `machine` with this guest
    kernel.

    A profile that is in the OCI form already comes out as it went in. Raises HakoError for a wrong shape.
    """
    try:
        result = {key: profile[key] for key in KEPT_TOP if profile.get(key) is not None}
        result["architectures"] = _architectures(profile, machine)
        rules = profile.get("syscalls") or []
        applying = [rule for rule in rules if _applies(rule, capabilities, machine, kernel)]
        result["syscalls"] = [_rule(rule) for rule in applying]
    except (TypeError, AttributeError, KeyError, ValueError) as exc:
        raise HakoError(f"it has a wrong shape: {exc!r}", step=STEP) from exc
    return result


def _architectures(profile: dict[str, Any], machine: str) -> list[str]:
    """This machine's architecture and those whose programs it also runs."""
    if profile.get("architectures"):
        return list(profile["architectures"])
    name = MACHINES.get(machine, ("", ""))[0]
    for entry in profile.get("archMap") or []:
        if entry["architecture"] == name:
            return [name, *(entry.get("subArchitectures") or [])]
    return [name] if name else []


def _applies(
    rule: dict[str, Any], capabilities: Collection[str], machine: str, kernel: tuple[int, int]
) -> bool:
    """Docker's meaning: all of `includes` must hold, any of `excludes` rules it out."""
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    architecture = MACHINES.get(machine, ("", machine))[1]
    if includes.get("arches") and architecture not in includes["arches"]:
        return False
    if architecture in (excludes.get("arches") or ()):
        return False
    if not set(includes.get("caps") or ()) <= set(capabilities):
        return False
    if set(excludes.get("caps") or ()) & set(capabilities):
        return False
    if includes.get("minKernel") and kernel < _version(includes["minKernel"]):
        return False
    return not (excludes.get("minKernel") and kernel >= _version(excludes["minKernel"]))


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    names = rule.get("names") or [rule["name"]]
    result: dict[str, Any] = {"names": list(names), "action": rule["action"]}
    if rule.get("errnoRet") is not None:
        result["errnoRet"] = rule["errnoRet"]
    if rule.get("args"):
        result["args"] = [{key: arg[key] for key in KEPT_ARGUMENT if key in arg} for arg in rule["args"]]
    return result
