"""A guest with hako's machine and daemons and without its agent: the peer of what containers do with files and streams.

Owns: its image (the test framework's, with bare_init.py) and its boot. Used by the groups `floors`, `files` and `stdio`.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

from shim.config import Config
from tests.bench.bare_init import ECHO_PORT, STREAM_PORT
from tests.framework import bareguest
from tests.framework.vm import AGENT_PORT, Booted

TIMEOUT = 30.0


class BareGuest:
    """Boots when made. `directory` (host) is for its image; `config` says which VMM and daemons."""

    def __init__(self, kernel: str, directory: Path, config: Config, undo: ExitStack) -> None:
        root = directory / "root"
        bareguest.tree(root, Path(__file__).with_name("bare_init.py"))
        (root / "bin/true").symlink_to("busybox")
        image = bareguest.erofs(root, directory / "bare.erofs")
        self._booted = undo.enter_context(Booted(config, kernel=kernel, image=str(image), initrd=None, accelerator="tcg"))

    def show(self, directory: Path) -> str:
        """Put a host directory into the share; its path in the guest."""
        return self._booted.share.add_volume("data", 0, str(directory), readonly=True)

    def shell(self) -> socket.socket:
        """A connection to a new shell."""
        return self._booted.vsock.connect(AGENT_PORT, TIMEOUT)

    def echo(self) -> socket.socket:
        """A connection on which everything comes back."""
        return self._booted.vsock.connect(ECHO_PORT, TIMEOUT)

    def stream(self, size: int) -> socket.socket:
        """A connection on which `size` zeros come."""
        sock = self._booted.vsock.connect(STREAM_PORT, TIMEOUT)
        sock.sendall(b"%d\n" % size)
        return sock
