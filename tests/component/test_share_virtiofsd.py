"""Real virtiofsd processes, C and Rust: how they start, are confined and end. No VM is at the other end."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.config import ShareConfig
from shim.process import Confinement
from shim.share import virtiofsd
from shim.share.virtiofsd import VirtioFs
from tests.framework import daemons


@pytest.fixture(params=daemons.KINDS)
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VirtioFs]:
    """A daemon for an empty share."""
    daemon = daemons.need(request.param)
    (tmp_path / "share").mkdir()
    started = virtiofsd.start(str(tmp_path / "share"), ShareConfig(daemon=daemon), Confinement())
    yield started
    started.child.terminate(0)
    started.child.close()
    try:
        os.close(started.vm_fd)
    except OSError:
        pass


@pytest.mark.parametrize("kind", daemons.KINDS)
def test_the_vmm_may_speak_before_there_is_a_daemon(kind: str, tmp_path: Path) -> None:
    """What it has said is answered when the daemon comes; nothing of the link is left in the file system."""
    daemon = daemons.need(kind)
    (tmp_path / "share").mkdir()
    link = virtiofsd.Link(str(tmp_path))
    with socket.socket(fileno=os.dup(link.vm_fd)) as vmm:
        vmm.sendall(struct.pack("<III", 1, 1, 0))  # VHOST_USER_GET_FEATURES, version 1, no payload
        assert os.listdir(tmp_path) == ["share"]
        child = link.serve(str(tmp_path / "share"), ShareConfig(daemon=daemon), Confinement())
        link.close()
        vmm.settimeout(20)
        request, _flags, size = struct.unpack("<III", vmm.recv(12))
        assert (request, size) == (1, 8)
    child.terminate(0)
    child.close()


FORBIDDEN = 1 << 21 | 1 << 16 | 1 << 2
"""SYS_ADMIN, SYS_MODULE, DAC_READ_SEARCH"""


def _family(pid: int) -> list[int]:
    """The daemon's outer process and the sandboxed one below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def _status(pid: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def _sandboxed(running: VirtioFs) -> int:
    """The inner process once it has confined itself: the Rust daemon gives up its capabilities after all else."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        family = _family(running.child.pid)
        if len(family) == 2:
            status = _status(family[1])
            if status["Seccomp"] == "2" and not int(status["CapEff"], 16) & FORBIDDEN:
                return family[1]
        time.sleep(0.01)
    raise AssertionError(f"no sandboxed process: {running.child.stderr_tail()}")


def test_daemon_is_confined(running: VirtioFs) -> None:
    """The process that serves the guest has seccomp, no_new_privs, few capabilities and namespaces of its
    own.
    """
    pid = _sandboxed(running)
    assert _status(pid)["NoNewPrivs"] == "1"
    for kind in ("mnt", "net", "pid"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


def test_socket_has_no_path(running: VirtioFs, tmp_path: Path) -> None:
    """The connection is there before the daemon is ready, and nobody else can connect."""
    assert os.listdir(tmp_path) == ["share"]
    with socket.socket(fileno=os.dup(running.vm_fd)) as sock:
        assert sock.getpeername()


def test_daemon_ends_with_its_vm(running: VirtioFs) -> None:
    """When QEMU is gone, so is the daemon, by itself."""
    _sandboxed(running)
    os.close(running.vm_fd)
    assert running.child.wait(5) is not None


def test_killed_daemon_is_noticed_and_leaves_nothing(running: VirtioFs) -> None:
    """Its death is told at once, and the sandboxed process does not outlive the outer one."""
    inner = _sandboxed(running)
    noticed = threading.Event()
    running.child.on_exit(noticed.set)
    os.kill(running.child.pid, signal.SIGKILL)
    assert noticed.wait(5)
    end = time.monotonic() + 5
    while os.path.exists(f"/proc/{inner}") and time.monotonic() < end:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{inner}")
