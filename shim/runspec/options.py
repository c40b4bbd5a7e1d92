"""What `hako run` was asked for, as data.

Owns: the shapes. Must not know: option syntax (shim/cli), the OCI spec (spec.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


class BindMount(Protocol):
    """A volume. Any object with these will do; `propagation` "" is the default, rprivate."""

    @property
    def source(self) -> str: ...
    @property
    def destination(self) -> str: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def propagation(self) -> str: ...


class ImageDefaults(Protocol):
    """What spec.py needs of an image's config; shim.image's ImageConfig has it."""

    @property
    def entrypoint(self) -> tuple[str, ...] | None: ...
    @property
    def cmd(self) -> tuple[str, ...]: ...
    @property
    def env(self) -> tuple[str, ...]: ...
    @property
    def workdir(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def stop_signal(self) -> str: ...


class Bind(NamedTuple):
    """A host path (absolute) at a path in the container (absolute)."""

    source: str
    destination: str
    read_only: bool = False
    propagation: str = ""


class RunOptions(NamedTuple):
    """One container. Host paths are absolute.

    `rootfs`: what becomes its root; `command`: the words after the image, () for the image's; `entrypoint`
    None: the image's, () none; `env`: KEY=VALUE, over the image's; `workdir`, `user`, `hostname` "": the
    image's, or "/", root and the id's first 12 characters; `cpus` 0 and `memory` (bytes) 0: no limit;
    `seccomp`: "" the default profile, "unconfined", or a host path; `netns`: host path, "" for a namespace
    without links; `files`: container path -> host path of resolv.conf and the like.
    """

    id: str
    rootfs: str
    command: Sequence[str] = ()
    entrypoint: Sequence[str] | None = None
    env: Sequence[str] = ()
    workdir: str = ""
    user: str = ""
    hostname: str = ""
    terminal: bool = False
    read_only: bool = False
    cpus: float = 0.0
    memory: int = 0
    cap_add: Sequence[str] = ()
    cap_drop: Sequence[str] = ()
    seccomp: str = ""
    no_new_privileges: bool = False
    volumes: Sequence[BindMount] = ()
    files: Mapping[str, str] = {}
    netns: str = ""
    annotations: Mapping[str, str] = {}
