"""The share in a template: whether it can be saved there, mounted, and the empty one that any template is made with.

Owns: what QEMU and virtiofsd must be for that, a daemon while a template is made. Must not know: templates on disk, pods.
Called by templatebuild.py and `hako factory`.

QEMU saves a vhost-user-fs device from 8.2 on, with the state of a virtiofsd that knows --migration-mode (1.11): what the
guest has looked up, as paths. A template's guest has looked up nothing but the root of an empty directory, so that
a clone's daemon, which shows another directory, finds nothing that it could miss. (Seen to work with 10.0 and 1.13, 1.14.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from shim.hypervisor import host
from shim.process import Confinement
from shim.sandbox import vmspec
from shim.share import virtiofsd

if TYPE_CHECKING:
    from shim.config import Config
    from shim.hypervisor.base import Share

FIRST_QEMU: Final = (8, 2)


def refusal(config: Config) -> str:
    """Why templates of this configuration do not have the share mounted; "" if they have. Raises HakoError."""
    if config.share.shared_fs == "none":
        return '[share] shared_fs = "none"'
    if not config.factory.mounted_share:
        return "[factory] mounted_share = false"
    version = host.version(config.hypervisor)
    if host.version_numbers(version) < FIRST_QEMU:
        return f"QEMU {version} cannot save a virtio-fs device, 8.2 can"
    daemon = virtiofsd.find(config.share.daemon)
    return "" if daemon.saves else f"{daemon.path} cannot hand on its state, the Rust virtiofsd 1.11 can"


@contextmanager
def empty(config: Config, directory: str) -> Iterator[Share]:
    """A daemon that shows an empty directory, made in host path `directory` (root's own). Raises HakoError, OSError."""
    shown = os.path.join(directory, "share")
    os.mkdir(shown, 0o755)
    link = virtiofsd.Link(directory)
    try:
        daemon = link.serve(shown, config.share, Confinement(no_new_privs=False))
        try:
            yield vmspec.share(config, link.vm_fd)
        finally:
            daemon.terminate(0)
            daemon.close()
    finally:
        link.close()
        os.rmdir(shown)
