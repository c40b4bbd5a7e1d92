"""The daemon that shows the share to the guest: C virtiofsd (QEMU up to 7.2) or the Rust one.

Owns: which daemon there is and what it understands, its command line (pure, tests/golden/virtiofsd/), its
start and end. Must not know: what is in the share, the VMM. Called by sandbox/builder.py.

The socket is made, bound and connected here before the daemon starts, which gets the listening end: there is nothing
to wait for, and its path is gone at once. The VMM may have its end before there is a daemon (`Link`).

The daemon is always sandboxed: own mount, pid and network namespace, pivot_root into the share, few capabilities, seccomp
that kills; without it a guest's raw FUSE request with an absolute name escapes (CVE-2026-47243).
"""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

import msgspec

from shim import answers, process
from shim.config import FITTING, ShareConfig
from shim.errors import HakoError, NotFound
from shim.process import Child, Confinement

# Where distributions put it; the Rust one first, it is the maintained one.
PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd")
VERSION_TIMEOUT = 10.0
# Files that a guest may have open; 0 would keep ours, which is what a daemon without CAP_SYS_RESOURCE must
# do.
WANTED_FILES = 1_000_000


class Daemon(NamedTuple):
    """A virtiofsd. `kind` is "c" or "rust"; `saves`: it can be part of a VM that is saved and restored."""

    path: str
    kind: str
    saves: bool = False


class VirtioFs(NamedTuple):
    """A running daemon. `vm_fd` is the VMM's end of the vhost-user connection: hand it over, close it."""

    child: Child
    vm_fd: int


def find(configured: str = "") -> Daemon:
    """The daemon to use: the configured one, or the first of PLACES. Raises NotFound."""
    from shim import tools

    path = configured or tools.find("virtiofsd-rust", PLACES)
    if not path:
        raise NotFound(
            "no virtiofsd",
            step="share",
            hint="apt-get install virtiofsd (Debian 13) or qemu-system-common (12)",
        )
    return Daemon(path, *_learnt(path))


def kind_of(path: str) -> str:
    """Which command line the program understands. Raises CommandFailed if it does not run."""
    return _learnt(path)[0]


def _learnt(path: str) -> tuple[str, bool]:
    """Kind, and whether it can hand its state on: from 1.11 on, by paths unless it is told otherwise."""

    def ask() -> str:
        if "FUSE kernel interface" in _said(path, "--version"):
            return "c"
        return "rust saves" if "--migration-mode" in _said(path, "--help") else "rust"

    kind, _, saves = answers.cached("virtiofsd-kind", [answers.identity(path)], ask)[0].partition(" ")
    return kind, saves == "saves"


def _said(path: str, option: str) -> str:
    return process.run([path, option], VERSION_TIMEOUT).decode("utf-8", "replace")


def fingerprint(daemon: Daemon, config: ShareConfig) -> str:
    """What a VM that is saved with its share depends on of the daemon: program and options. It takes up no other's state.

    What the guest may keep is not in that state (Rust virtiofsd, device_state/serialized.rs, NegotiatedOpts): each clone's own
    daemon may say another.
    """
    return "\n".join([answers.identity(daemon.path), *command(daemon, "", 0, config, 0)])


def settled(config: ShareConfig, *, own_files: bool = False) -> ShareConfig:
    """With what the guest may cache decided. `own_files`: nobody but the guest writes to what it is shown."""
    if config.cache != FITTING:
        return config
    return msgspec.structs.replace(config, cache="always" if own_files else "auto")


def command(daemon: Daemon, directory: str, fd: int, config: ShareConfig, files: int) -> list[str]:
    """The command line for host directory `directory` and listening socket `fd`; pure."""
    config = settled(config)
    build = _c_command if daemon.kind == "c" else _rust_command
    return [daemon.path, *build(directory, fd, config, files), *config.extra_args]


def _c_command(directory: str, fd: int, config: ShareConfig, files: int) -> list[str]:
    """QEMU's own. Its seccomp cannot be turned off, and it runs in the foreground with -f.

    "auto" of its own makes the guest drop a file's pages at every open, so that each exec reads its program anew (27 ms
    for busybox). "always" with a time-out of a second keeps them: the kernel drops them when size or times have changed
    (FUSE_AUTO_INVAL_DATA), and asks for these after that second.
    """
    cache = {"never": ["none"], "auto": ["always", "-o", "timeout=1"], "always": ["always"]}[config.cache]
    cache[0] = f"cache={cache[0]}"
    return [
        "-f",
        f"--fd={fd}",
        "-o", f"source={directory}",
        "-o", *cache,
        "-o", "sandbox=namespace",
        "-o", "announce_submounts",
        "-o", "xattr",
        "-o", "log_level=warn",
        f"--thread-pool-size={config.thread_pool_size}",
        f"--rlimit-nofile={files}",
    ]  # fmt: skip


def _rust_command(directory: str, fd: int, config: ShareConfig, files: int) -> list[str]:
    """No --tag: QEMU 7.1 to 8.0 crash when the daemon announces one (performance.md 2.7)."""
    return [
        f"--fd={fd}",
        f"--shared-dir={directory}",
        f"--cache={config.cache}",
        "--sandbox=namespace",
        "--seccomp=kill",
        "--announce-submounts",
        "--xattr",
        "--inode-file-handles=never",
        "--log-level=warn",
        f"--thread-pool-size={config.thread_pool_size}",
        f"--rlimit-nofile={files}",
    ]  # fmt: skip


class Link:
    """The connection between a VMM and a daemon that need not run yet: what the VMM says waits for it.

    `vm_fd` is the VMM's end; hand it over before `close`.
    """

    def __init__(self, directory: str) -> None:
        """Host directory `directory` is root's own. Raises HakoError."""
        self._listening, self._connected = _connected_pair(directory)
        self.vm_fd = self._connected.fileno()

    def serve(
        self, directory: str, config: ShareConfig, confine: Confinement | None = None, *, own_files: bool = False
    ) -> Child:
        """Start the daemon for host directory `directory`, which stays its view for its life; `own_files`: see settled().

        `confine` must leave it root: it needs to act as every user of the guest. Raises HakoError.
        """
        fd = self._listening.fileno()
        argv = command(find(config.daemon), directory, fd, settled(config, own_files=own_files), file_limit())
        return process.spawn(argv, fds={"vhost-user": fd}, confine=confine)

    def close(self) -> None:
        """Both ends, as far as they are ours. Idempotent."""
        self._listening.close()
        self._connected.close()

    def detach(self) -> int:
        """Close all but the VMM's end, which is the caller's now."""
        self._listening.close()
        return self._connected.detach()


def start(directory: str, config: ShareConfig, confine: Confinement | None = None) -> VirtioFs:
    """A link and the daemon at once. See Link.serve."""
    link = Link(os.path.dirname(directory))
    try:
        child = link.serve(directory, config, confine)
    except BaseException:
        link.close()
        raise
    return VirtioFs(child, link.detach())


def file_limit() -> int:
    """How many files the daemon may open: as many as it would take itself, but no more than it is allowed
    to.
    """
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)


def _connected_pair(directory: str) -> tuple[socket.socket, socket.socket]:
    """A listening socket, and one that is connected to it; bound in root's own `directory` for a moment.

    By a descriptor of the directory, because a socket's path is limited to 107 bytes.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    path = f"/proc/self/fd/{fd}/virtiofsd.sock"
    try:
        listening.bind(path)
        try:
            listening.listen(1)
            connected.connect(path)
        finally:
            os.unlink(path)
    except OSError as exc:
        listening.close()
        connected.close()
        raise HakoError(exc.strerror or str(exc), step="connect virtiofsd", object=directory) from exc
    finally:
        os.close(fd)
    return listening, connected
