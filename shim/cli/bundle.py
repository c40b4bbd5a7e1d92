"""The bundle of a container made by hand: config.json and the files that go into it.

Owns: what is in them. Must not know: how root filesystem and network came to be, the pod. Called by
launch.py.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from shim import runspec
from shim.byhand import aftercare, registry
from shim.cli import podlog, values

if TYPE_CHECKING:
    from typing import Any

    from shim.byhand.registry import Container
    from shim.cli.wishes import Wishes
    from shim.image.imageconfig import ImageConfig

CONFIG = "config.json"
DEFAULT_STOP_SIGNAL = 15


class Root(NamedTuple):
    """A root filesystem: its host path, and how its image wants to be run (None: a plain directory)."""

    path: str
    config: ImageConfig | None


class Network(NamedTuple):
    """`netns`: host path, "" for one without links; `address`, `resolv_conf` (text): "" if unknown."""

    netns: str
    address: str
    resolv_conf: str


def write(container: Container, wishes: Wishes, root: Root, network: Network) -> None:
    """Write everything. Raises InvalidSpec, UserError, HakoError for what the options or the image ask."""
    hostname = wishes.hostname or container.id
    _file(container, podlog.NAME, "")
    files = {
        "/etc/hostname": _file(container, "hostname", f"{hostname}\n"),
        "/etc/hosts": _file(container, "hosts", hosts(hostname, network.address)),
    }
    if network.resolv_conf:
        files["/etc/resolv.conf"] = _file(container, "resolv.conf", network.resolv_conf)
    config = runspec.make(_options(container, wishes, root, network, files), root.config)
    container.command = config["process"]["args"]
    registry.write_json(container.file(CONFIG), config)


def stop_signal(root: Root) -> int:
    """What the image wants to be stopped with."""
    wanted = root.config.stop_signal if root.config else ""
    return values.signal_number(wanted) if wanted else DEFAULT_STOP_SIGNAL


def hosts(hostname: str, address: str) -> str:
    """/etc/hosts, in which the container finds itself."""
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines.append(f"{address or '127.0.1.1'}\t{hostname}")
    return "\n".join(lines) + "\n"


def host_resolv_conf() -> str:
    """The host's /etc/resolv.conf, for a network namespace that somebody else made."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def warn(text: str) -> None:
    """Something that the user should know, and that need not keep the container from running."""
    print(f"hako: warning: {text}", file=sys.stderr)


def _file(container: Container, name: str, text: str) -> str:
    path = container.file(name)
    try:
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(path, 0o644)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, path) from exc  # write(2) does not say of what
    return path


def _options(container: Container, wishes: Wishes, root: Root, network: Network, files: dict[str, str]) -> runspec.RunOptions:
    remove = {aftercare.REMOVE_ANNOTATION: "true" if wishes.remove else "false"}
    shared: dict[str, Any] = {name: getattr(wishes, name) for name in runspec.RunOptions._fields if name in wishes._fields}
    return runspec.RunOptions(
        **shared
        | {
            "id": container.id,
            "rootfs": root.path,
            "files": files,
            "netns": network.netns,
            "annotations": wishes.annotations | remove,
        }
    )
