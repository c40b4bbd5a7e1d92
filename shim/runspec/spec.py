"""The OCI config.json of a container made by `hako run`: options and image together, with Docker's defaults.

Owns: how they combine. Must not know: the command line's syntax, the cache, the VM. `build` is pure; `make`
reads the image's passwd and the seccomp profile for it. Called by the CLI, which writes the result into the
bundle.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from shim.errors import InvalidSpec
from shim.runspec.capabilities import choose, sets
from shim.runspec.defaults import (
    CPU_PERIOD,
    MASKED_PATHS,
    NAMESPACES,
    OCI_VERSION,
    PATH,
    READONLY_PATHS,
    SYSCTLS,
    default_mounts,
    device_rules,
)
from shim.runspec.options import Bind, BindMount, ImageDefaults, RunOptions
from shim.runspec.seccomp import load, resolve
from shim.runspec.users import ImageUser, resolve_user

STOP_SIGNAL = "org.opencontainers.image.stopSignal"  # as podman and CRI-O write it
OLDEST_GUEST_KERNEL = (6, 1)  # Debian 12's; profiles ask for 4.8


def make(options: RunOptions, image: ImageDefaults | None) -> dict[str, Any]:
    """config.json as a dict. `image` None: a bare root filesystem. Raises InvalidSpec, UserError,
    HakoError.
    """
    user = resolve_user(options.rootfs, options.user or (image.user if image else ""))
    return build(options, image, user, load(options.seccomp))


def build(
    options: RunOptions,
    image: ImageDefaults | None,
    user: ImageUser,
    profile: dict[str, Any] | None,
    machine: str = os.uname().machine,
) -> dict[str, Any]:
    """`make` with everything looked up. `profile` None: no seccomp. Raises InvalidSpec."""
    bounding = choose(options.cap_add, options.cap_drop)
    hostname = options.hostname or options.id[:12]
    linux: dict[str, Any] = {
        "cgroupsPath": f"/hako/{options.id}",
        "namespaces": _namespaces(options.netns),
        "resources": _resources(options),
        "sysctl": dict(SYSCTLS),
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READONLY_PATHS),
    }
    if profile is not None:
        linux["seccomp"] = resolve(profile, bounding, machine, OLDEST_GUEST_KERNEL)
    return {
        "ociVersion": OCI_VERSION,
        "process": _process(options, image, user, bounding, hostname),
        "root": {"path": options.rootfs, "readonly": options.read_only},
        "hostname": hostname,
        "mounts": _mounts(options),
        "annotations": _annotations(options, image),
        "linux": linux,
    }


def set_user(process: dict[str, Any], rootfs: str, text: str) -> None:
    """Make an OCI process (of `hako exec`) run as `user[:group]` of the root filesystem at this host path.

    Its effective capabilities follow from the bounding set and the user, as at start. Raises UserError.
    """
    user = resolve_user(rootfs, text)
    process["user"] = {**_keep_umask(process.get("user")), **_user(user)}
    bounding = (process.get("capabilities") or {}).get("bounding") or []
    process["capabilities"] = sets(bounding, user.uid)


def _keep_umask(user: dict[str, Any] | None) -> dict[str, Any]:
    return {"umask": user["umask"]} if user and "umask" in user else {}


def _process(
    options: RunOptions, image: ImageDefaults | None, user: ImageUser, bounding: list[str], hostname: str
) -> dict[str, Any]:
    return {
        "terminal": options.terminal,
        "user": _user(user),
        "args": _arguments(options, image),
        "env": _environment(options, image, hostname),
        "cwd": _directory(options.workdir or (image.workdir if image else "")),
        "capabilities": sets(bounding, user.uid),
        "noNewPrivileges": options.no_new_privileges,
    }


def _user(user: ImageUser) -> dict[str, Any]:
    return {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)}


def _arguments(options: RunOptions, image: ImageDefaults | None) -> list[str]:
    """Entrypoint, then command; an entrypoint of the user's own sets the image's command aside too."""
    if options.entrypoint is not None:
        words = [*options.entrypoint, *options.command]
    else:
        own = image.entrypoint if image else None
        words = [*(own or ()), *(options.command or (image.cmd if image else ()))]
    if not words or not words[0]:
        raise InvalidSpec(
            "process.args", "there is no command: the image names none", hint="write it after the image"
        )
    return words


def _environment(options: RunOptions, image: ImageDefaults | None, hostname: str) -> list[str]:
    """Ours, under the image's, under the user's. HOME is the agent's: it depends on the user of each
    process.
    """
    merged: dict[str, str] = {}
    ours = [PATH, f"HOSTNAME={hostname}", *(["TERM=xterm"] if options.terminal else [])]
    for variable in [*ours, *(image.env if image else ()), *options.env]:
        key, _, value = variable.partition("=")
        if key:
            merged[key] = value
    return [f"{key}={value}" for key, value in merged.items()]


def _directory(path: str) -> str:
    """An image's working directory may be relative; the spec's must not."""
    normal = os.path.normpath(os.path.join("/", path))
    return "/" + normal.lstrip("/")  # normpath leaves two leading slashes, as POSIX lets it


def _namespaces(netns: str) -> list[dict[str, str]]:
    network = {"type": "network", "path": netns} if netns else {"type": "network"}
    return [network, *({"type": kind} for kind in NAMESPACES)]


def _resources(options: RunOptions) -> dict[str, Any]:
    resources: dict[str, Any] = {"devices": device_rules()}
    if options.cpus:
        quota = max(1000, round(options.cpus * CPU_PERIOD))  # the kernel's least is 1 ms
        resources["cpu"] = {"quota": quota, "period": CPU_PERIOD}
    if options.memory:
        resources["memory"] = {"limit": options.memory}
    return resources


def _mounts(options: RunOptions) -> list[dict[str, Any]]:
    """Defaults, files, volumes, each replacing what had its place; a volume below another comes later."""
    files = [Bind(source, destination) for destination, source in options.files.items()]
    wanted = {bind["destination"]: bind for bind in map(_bind, [*files, *options.volumes])}
    kept = [mount for mount in default_mounts() if mount["destination"] not in wanted]
    return kept + sorted(wanted.values(), key=lambda bind: len(_parts(bind["destination"])))


def _parts(path: str) -> Sequence[str]:
    return [part for part in path.split("/") if part]


def _bind(bind: BindMount) -> dict[str, Any]:
    if not bind.source.startswith("/") or not bind.destination.startswith("/"):
        raise InvalidSpec("mounts", f"{bind.source}:{bind.destination}: both paths must be absolute")
    destination = _directory(bind.destination)
    if destination == "/":
        raise InvalidSpec("mounts", f"{bind.source}:/: the root itself cannot be a volume")
    options = ["rbind", "ro" if bind.read_only else "rw", bind.propagation or "rprivate"]
    return {"destination": destination, "type": "bind", "source": bind.source, "options": options}


def _annotations(options: RunOptions, image: ImageDefaults | None) -> dict[str, str]:
    signal = {STOP_SIGNAL: image.stop_signal} if image and image.stop_signal else {}
    return {**signal, **options.annotations}
