"""The channel into a VM: the kernel's vhost-vsock where there is one, else the vhost-device-vsock daemon.

Owns: which of the two, the guest's CID, the daemon and its sockets, connecting to a port of the guest. Must
not know: what is spoken there. Called by sandbox/builder.py: `open_transport` before the VM is launched,
`connect` once its agent has said hello on the console: vhost-device-vsock breaks for good when somebody
connects before the guest's driver is up, or before the daemon itself knows that it is.

The daemon takes only paths. They are in a directory that the unprivileged user owns, and each appears
within a deadline, which inotify watches; the VMM gets a connected descriptor. The guest cannot tell the two
transports apart.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
import struct
import termios
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from agent.linux import syscalls
from agent.linux.vsock import BUFFER
from shim import process, tools
from shim.config import VsockConfig
from shim.errors import HakoError, NotFound, Timeout, Unavailable
from shim.hypervisor.base import Vsock
from shim.process import Child, Confinement, deadline

VHOST_VSOCK: Final = "/dev/vhost-vsock"
VHOST_VSOCK_SET_GUEST_CID: Final = 0x4008AF60  # linux/vhost.h
FIRST_CID: Final = 3  # 0 - 2 are hypervisor, local, host (vsock(7))
LAST_CID: Final = 0xFFFFFFFE
CID_ATTEMPTS: Final = 64
DAEMON_DEADLINE: Final = 5.0  # seconds until the daemon's socket is there
VHOST_USER: Final = "vhost.sock"  # in the daemon's directory: for the VMM
HYBRID: Final = "vsock.sock"  # and for us
ANSWER_BYTES: Final = 32  # "OK 4294967295\n"
READ_PAUSE: Final = 0.001  # seconds between looks whether the daemon has read what the VMM told it
# What may be on its way from the guest, of each connection. The daemon's default, 64 KiB, is one packet, and guest and daemon
# take turns. It tells new credit only once three quarters are used up, and 6.1.y of 2026 never uses more than the guest's socket
# has (virtio_transport_tx_buf_size): with a smaller one, such as Linux's own 256 KiB, a stream would stand still.
SEND_CREDIT: Final = BUFFER
# The daemon allocates as much for each connection, for what the host does not take at once. Once the first is freed, glibc keeps
# the next ones on its heap, which the daemon clears: memory that nothing ever comes into. A fixed threshold prevents that.
DAEMON_ENVIRONMENT: Final = {**process.ENVIRONMENT, "MALLOC_MMAP_THRESHOLD_": str(SEND_CREDIT // 2)}


class Transport(Protocol):
    """A VM's vsock device, from the host's side."""

    def device(self) -> Vsock:
        """For VmSpec. Its descriptor stays ours, until `launched`."""

    def launched(self) -> None:
        """The VMM has its descriptor."""

    def connect(self, port: int, timeout: float) -> socket.socket:
        """A stream to `port` in the guest.

        Raises Unavailable if nobody listens there, Timeout at the deadline.
        """

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Call back when the transport has ended by itself."""

    def status(self) -> int | None:
        """The daemon's exit status as Child.poll gives it; None while it runs, and where there is none."""

    def kill(self) -> None:
        """Begin with the end of its daemon, if there is one; `close` waits for it."""

    def close(self) -> None:
        """End it. Idempotent."""


def open_transport(config: VsockConfig, directory: str, confine: Confinement) -> Transport:
    """The transport that configuration and host allow.

    `directory` (host) is for the daemon's sockets. Raises HakoError.
    """
    kernel = config.transport == "kernel" or (config.transport == "auto" and kernel_has_vsock())
    return KernelTransport() if kernel else DaemonTransport(config.daemon, directory, confine)


def kernel_has_vsock() -> bool:
    """Whether /dev/vhost-vsock can be opened: a device node without its driver is no transport."""
    try:
        os.close(os.open(VHOST_VSOCK, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class KernelTransport:
    """vhost-vsock.

    The kernel gives a CID to one VM at a time, so a free one is found by asking for random ones.
    """

    def __init__(self, device: str = VHOST_VSOCK) -> None:
        try:
            self._fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as exc:
            raise Unavailable(exc.strerror or str(exc), step="vsock", object=device, hint="modprobe vhost_vsock") from exc
        try:
            self._cid = claim_cid(lambda cid: _set_guest_cid(self._fd, cid))
        except BaseException:
            os.close(self._fd)
            raise

    def device(self) -> Vsock:
        """See Transport."""
        return Vsock(self._fd, self._cid)

    def launched(self) -> None:
        """See Transport. The CID is the VMM's as long as it has the descriptor."""
        self.close()

    def connect(self, port: int, timeout: float) -> socket.socket:
        """See Transport."""
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect((self._cid, port))
        except TimeoutError as exc:
            sock.close()
            raise Timeout("no answer", step="connect to the guest", object=f"vsock port {port}") from exc
        except OSError as exc:
            sock.close()
            raise _nobody(port, exc.strerror or str(exc)) from exc
        return sock

    def on_exit(self, callback: Callable[[], None]) -> None:
        """See Transport. The kernel's does not end."""

    def status(self) -> int | None:
        """See Transport."""
        return None

    def kill(self) -> None:
        """See Transport."""

    def close(self) -> None:
        """See Transport."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def claim_cid(claim: Callable[[int], None]) -> int:
    """A CID for which `claim` raised no EADDRINUSE. Raises HakoError after 64 attempts."""
    import random

    for _ in range(CID_ATTEMPTS):
        cid = random.SystemRandom().randint(FIRST_CID, LAST_CID)
        try:
            claim(cid)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise HakoError(exc.strerror or str(exc), step="vsock", object=f"CID {cid}") from exc
        else:
            return cid
    raise HakoError(f"no free CID in {CID_ATTEMPTS} attempts", step="vsock")


def _set_guest_cid(fd: int, cid: int) -> None:
    fcntl.ioctl(fd, VHOST_VSOCK_SET_GUEST_CID, struct.pack("Q", cid))


class DaemonTransport:
    """vhost-device-vsock: speaks vhost-user to the VMM, and hybrid vsock (CONNECT PORT) on a unix socket to
    us.
    """

    def __init__(self, configured: str, directory: str, confine: Confinement) -> None:
        if configured and not os.access(configured, os.X_OK):
            raise NotFound("there is no such program", step="vsock", object=configured)
        program = tools.find("vhost-device-vsock", (configured,))
        if program is None:
            raise NotFound(
                "neither /dev/vhost-vsock nor vhost-device-vsock",
                step="vsock",
                hint="modprobe vhost_vsock, or python -m shim.tools --ensure vhost-device-vsock",
            )
        self._directory = directory
        self._vm_fd = self._told_fd = self._hybrid_fd = -1
        _make_directory(directory, confine)
        try:
            self._arrival = _Arrival(directory)
            try:
                self._child = process.spawn(command(program, directory), confine=confine, env=DAEMON_ENVIRONMENT)
            except BaseException:
                self._arrival.close()
                raise
        except BaseException:
            self._remove_directory()
            raise

    def device(self) -> Vsock:
        """See Transport. Waits for the daemon, which others may start beside meanwhile."""
        if self._vm_fd < 0:
            self._arrival.wait(VHOST_USER, self._child, deadline(DAEMON_DEADLINE))
            with _unix_socket() as sock:
                _connect_listening(sock, os.path.join(self._directory, VHOST_USER), self._child)
                self._hybrid_fd = _socket_itself(os.path.join(self._directory, HYBRID))
                self._vm_fd = sock.detach()
            self._told_fd = fcntl.fcntl(self._vm_fd, fcntl.F_DUPFD_CLOEXEC, 0)
            self._arrival.close()
        return Vsock(self._vm_fd)

    def launched(self) -> None:
        """See Transport."""
        fd, self._vm_fd = self._vm_fd, -1
        if fd >= 0:
            os.close(fd)

    def connect(self, port: int, timeout: float) -> socket.socket:
        """See Transport."""
        left = deadline(timeout)
        sock = _unix_socket()
        try:
            self._await_told(left)
            sock.settimeout(left())
            sock.connect(f"/proc/self/fd/{self._hybrid_fd}")
            sock.sendall(b"CONNECT %d\n" % port)
            _expect_ok(sock, port)
            sock.settimeout(None)
        except TimeoutError as exc:
            sock.close()
            raise Timeout("no answer", step="connect to the guest", object=f"vsock port {port}") from exc
        except OSError as exc:
            sock.close()
            raise _nobody(port, exc.strerror or str(exc)) from exc
        except BaseException:
            sock.close()
            raise
        return sock

    def _await_told(self, left: Callable[[], float]) -> None:
        """Until the daemon has read what the VMM told it. Raises TimeoutError.

        The driver is up when QEMU has written its rings to the vhost-user socket; it waits for no answer to the last dozen
        messages. A busy machine lets the daemon's other thread take our connection first, for which it has no rings
        then: 1 of 100 starts at a load of 10. Once the last message is taken, the ones that enable the rings are done.
        """
        while self._told_fd >= 0:
            if not _unread(self._told_fd):
                self._forget_told()
            elif not left():
                raise TimeoutError
            else:
                time.sleep(READ_PAUSE)

    def _forget_told(self) -> None:
        """The daemon ends with the last descriptor of the VMM's side: it must not be ours."""
        fd, self._told_fd = self._told_fd, -1
        if fd >= 0:
            os.close(fd)

    def on_exit(self, callback: Callable[[], None]) -> None:
        """See Transport."""
        self._child.on_exit(callback)

    def status(self) -> int | None:
        """See Transport."""
        return self._child.poll()

    def kill(self) -> None:
        """See Transport."""
        self._child.kill()

    def close(self) -> None:
        """See Transport."""
        self.launched()
        self._forget_told()
        self._child.terminate(0)
        self._child.close()
        self._arrival.close()
        fd, self._hybrid_fd = self._hybrid_fd, -1
        if fd >= 0:
            os.close(fd)
        self._remove_directory()

    def _remove_directory(self) -> None:
        """The daemon's sockets, by name: a directory that another user owns is not walked through."""
        for name in (VHOST_USER, HYBRID):
            try:
                os.unlink(os.path.join(self._directory, name))
            except FileNotFoundError:
                pass
        try:
            os.rmdir(self._directory)
        except OSError:
            pass


def command(program: str, directory: str) -> list[str]:
    """The daemon's command line; pure.

    The CID is only between it and its guest, each has a daemon of its own.
    """
    paths = f"socket={directory}/{VHOST_USER},uds-path={directory}/{HYBRID}"
    return [program, "--vm", f"guest-cid={FIRST_CID},{paths},tx-buffer-size={SEND_CREDIT}"]


def _make_directory(directory: str, confine: Confinement) -> None:
    """Where the daemon may make its sockets; nobody else but root may look in."""
    try:
        os.mkdir(directory, 0o700)
        if confine.uid is not None:
            os.chown(directory, confine.uid, -1 if confine.gid is None else confine.gid)
    except OSError as exc:
        raise HakoError(exc.strerror or str(exc), step="vsock", object=directory) from exc


def _socket_itself(path: str) -> int:
    """A descriptor by which the socket can be connected to, whatever its owner puts in its place later."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        raise HakoError(exc.strerror or str(exc), step="vsock", object=path) from exc
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise HakoError("is not a socket", step="vsock", object=path)


def _unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def _connect_listening(sock: socket.socket, path: str, child: Child) -> None:
    """Connect to a socket that is bound already; between its bind and its listen it refuses."""
    left = deadline(DAEMON_DEADLINE)
    while True:
        try:
            sock.connect(path)
            return
        except ConnectionRefusedError as exc:
            if child.wait(0.001) is not None:
                raise child.failure() from exc
            if not left():
                raise Timeout("does not listen", step="vsock", object=path) from exc
        except OSError as exc:
            raise HakoError(exc.strerror or str(exc), step="vsock", object=path) from exc


def _unread(fd: int) -> int:
    """Bytes that were written to a socket and that its peer has not read (unix(7), SIOCOUTQ)."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))[0])


def _expect_ok(sock: socket.socket, port: int) -> None:
    """Take the answer to CONNECT and nothing behind it: what follows is the stream's."""
    answer = b""
    while not answer.endswith(b"\n"):
        there = sock.recv(ANSWER_BYTES, socket.MSG_PEEK)
        if not there or len(answer) > ANSWER_BYTES:
            raise _nobody(port, "connection closed")
        answer += sock.recv(there.find(b"\n") + 1 or len(there))
    if not answer.startswith(b"OK "):
        raise _nobody(port, answer.decode("ascii", "replace").strip())


def _nobody(port: int, reason: str) -> Unavailable:
    return Unavailable(reason, step="connect to the guest", object=f"vsock port {port}")


class _Arrival:
    """Waits for a name to appear in a directory, or for the end of the process that should make it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._watch = syscalls.inotify_init()
        syscalls.inotify_add_watch(self._watch, directory, syscalls.IN_CREATE)

    def wait(self, name: str, child: Child, left: Callable[[], float]) -> None:
        """Raises CommandFailed with the child's last words if it ends before, or when no time is left."""
        path = os.path.join(self._directory, name)
        while not os.path.lexists(path):
            if not left() or child.poll() is not None:
                raise child.failure()
            _wait_readable(self._watch, child.pidfd, left())

    def close(self) -> None:
        """Stop watching. Idempotent. The kernel takes 10 ms for that (a grace period of SRCU), which nobody waits for."""
        watch, self._watch = self._watch, -1
        if watch >= 0:
            threading.Thread(target=os.close, args=(watch,), name="hako-close", daemon=True).start()


def _wait_readable(watch: int, pidfd: int, timeout: float) -> None:
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    for fd, _ in poll.poll(timeout * 1000):
        if fd == watch:
            os.read(watch, 4096)
