"""The vsock transports on this host: the real daemon without a VM, daemons that misbehave, the kernel's if
there.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim import tools
from shim.config import VsockConfig
from shim.errors import HakoError, NotFound, Timeout, Unavailable
from shim.hypervisor import vsock
from shim.hypervisor.vsock import DaemonTransport, KernelTransport
from shim.process import NEW_NETNS, Confinement

FAKE = Path(__file__).resolve().parents[1] / "framework/fakevsock.py"
Open = Callable[[str], DaemonTransport]


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """Where the daemon's sockets go."""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(parent, 0o755)
    return str(tmp_path / "vsock")


@pytest.fixture
def fake(tmp_path: Path, directory: str) -> Iterator[Open]:
    """Open a transport over a daemon that behaves as named, with a VMM connected."""
    opened: list[DaemonTransport] = []

    def start(mode: str) -> DaemonTransport:
        program = tmp_path / f"{mode}-daemon"
        program.write_bytes(FAKE.read_bytes())
        program.chmod(0o755)
        opened.append(DaemonTransport(str(program), directory, Confinement()))
        return opened[-1]

    yield start
    for transport in opened:
        transport.close()
    assert not os.path.exists(directory)


def test_stream_begins_after_the_answer(fake: Open) -> None:
    """Not a byte of the stream is swallowed with the answer to CONNECT."""
    transport = fake("good")
    assert transport.device().cid == 0
    with transport.connect(1024, 5) as sock:
        sock.sendall(b" and more")
        data = b""
        while len(data) < 19:
            data += sock.recv(100)
    assert data == b"early data and more"


def test_port_without_listener_is_refused(fake: Open) -> None:
    """A closed connection says that nobody listens there."""
    transport = fake("refuse")
    transport.device()
    with pytest.raises(Unavailable, match=r"vsock port 1024: connection closed"):
        transport.connect(1024, 5)


def test_slow_answer_ends_at_the_deadline(fake: Open) -> None:
    """Connecting takes no longer than was allowed."""
    transport = fake("slow")
    transport.device()
    start = time.monotonic()
    with pytest.raises(Timeout, match="vsock port 1024"):
        transport.connect(1024, 0.2)
    assert time.monotonic() - start < 0.9


def test_a_busy_daemon_is_given_time(fake: Open) -> None:
    """Nobody connects before it has read what the VMM told it of the guest's rings; nor for ever."""
    transport = fake("busy")
    os.write(transport.device().fd, b"twelve rings")
    transport.launched()
    with pytest.raises(Timeout, match="vsock port 1024"):
        transport.connect(1024, 0.1)
    transport.connect(1024, 5).close()


def test_endless_answer_is_refused(fake: Open) -> None:
    """An answer that is no answer is not read for ever."""
    transport = fake("lie")
    transport.device()
    with pytest.raises(Unavailable):
        transport.connect(1024, 5)


def test_daemon_that_dies_is_quoted(fake: Open) -> None:
    """Its last words are in the error, at once."""
    transport = fake("die")
    start = time.monotonic()
    with pytest.raises(HakoError, match=r"exited with status 4: vhost: no such luck"):
        transport.device()
    assert time.monotonic() - start < 3


def test_daemon_that_hangs_ends_at_the_deadline(fake: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that makes no socket is an error after the deadline."""
    monkeypatch.setattr(vsock, "DAEMON_DEADLINE", 0.3)
    transport = fake("never")
    with pytest.raises(HakoError, match="is still running"):
        transport.device()


def test_replaced_socket_is_not_followed(fake: Open, directory: str, tmp_path: Path) -> None:
    """The daemon's user cannot lead us, who are root, to another socket by putting a link in its place."""
    transport = fake("good")
    transport.device()
    trap = socket.socket(socket.AF_UNIX)
    trap.bind(str(tmp_path / "trap"))
    trap.listen(1)
    os.unlink(f"{directory}/{vsock.HYBRID}")
    os.symlink(tmp_path / "trap", f"{directory}/{vsock.HYBRID}")
    with transport.connect(1024, 5) as sock:
        assert sock.recv(5) == b"early"
    trap.close()


def test_death_of_the_daemon_is_told(fake: Open) -> None:
    """Whoever watches the transport hears of its end, and connecting fails."""
    transport = fake("good")
    transport.device()
    ended = threading.Event()
    transport.on_exit(ended.set)
    os.kill(transport._child.pid, signal.SIGKILL)
    assert ended.wait(5)
    with pytest.raises(Unavailable):
        transport.connect(1024, 5)


def test_real_daemon_as_nobody(directory: str) -> None:
    """vhost-device-vsock runs as an unprivileged user without a network, in a directory only it and root
    may enter.
    """
    if tools.find("vhost-device-vsock") is None:
        pytest.skip("no vhost-device-vsock: python -m shim.tools --ensure vhost-device-vsock")
    transport = DaemonTransport("", directory, Confinement(uid=65534, gid=65534, netns=NEW_NETNS))
    try:
        assert transport.device().fd >= 0
        found = os.stat(directory)
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (65534, 0o700)
        status = Path(f"/proc/{transport._child.pid}/status").read_text()
        assert "Uid:\t65534\t65534\t65534\t65534" in status
        assert "CapEff:\t0000000000000000" in status
        net = f"/proc/{transport._child.pid}/ns/net"
        assert os.readlink(net) != os.readlink("/proc/self/ns/net")
    finally:
        transport.close()
        transport.close()
    assert not os.path.exists(directory)


def test_missing_daemon_says_what_to_do(directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kernel support and daemon the error names both remedies."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path))
    if tools.find("vhost-device-vsock") is not None:
        pytest.skip("vhost-device-vsock is installed on this system")
    with pytest.raises(NotFound, match="modprobe vhost_vsock, or"):
        DaemonTransport("", directory, Confinement())
    assert not os.path.exists(directory)


def test_kernel_transport_is_refused_without_its_device(tmp_path: Path) -> None:
    """[vsock] transport = "kernel" on a host without it is an error that names the module."""
    with pytest.raises(Unavailable, match="modprobe vhost_vsock"):
        KernelTransport(str(tmp_path / "none"))


def test_kernel_transport_gets_a_cid() -> None:
    """With /dev/vhost-vsock two VMs get different CIDs."""
    if not vsock.kernel_has_vsock():
        pytest.skip("no /dev/vhost-vsock: modprobe vhost_vsock (not on this kind of machine)")
    one, two = KernelTransport(), KernelTransport()
    assert one.device().cid != two.device().cid
    one.close()
    two.close()


def test_choice_follows_the_configuration(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "kernel" and "userspace" are not second-guessed; "auto" takes the kernel's where it is."""
    chosen: list[str] = []
    monkeypatch.setattr(vsock, "KernelTransport", lambda: chosen.append("kernel"))
    monkeypatch.setattr(vsock, "DaemonTransport", lambda *arguments: chosen.append("daemon"))
    for there in (True, False):
        monkeypatch.setattr(vsock, "kernel_has_vsock", lambda there=there: there)
        for transport in ("auto", "kernel", "userspace"):
            vsock.open_transport(VsockConfig(transport=transport), directory, Confinement())
    assert chosen == ["kernel", "kernel", "daemon", "daemon", "kernel", "daemon"]
