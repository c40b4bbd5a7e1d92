"""The guest's CID and the daemon's command line (shim/hypervisor/vsock.py)."""

from __future__ import annotations

import errno
import os

import pytest

from shim.errors import HakoError
from shim.hypervisor import vsock


def test_cid_in_use_is_not_taken() -> None:
    """Another one is asked for until the kernel gives one."""
    asked: list[int] = []

    def claim(cid: int) -> None:
        asked.append(cid)
        if len(asked) < 5:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    assert vsock.claim_cid(claim) == asked[4]
    assert len(set(asked)) == 5
    assert all(3 <= cid <= 0xFFFFFFFE for cid in asked)


def test_search_for_a_cid_is_bounded() -> None:
    """A kernel without a free CID is an error, not an endless loop; another error is raised at once."""

    def full(cid: int) -> None:
        raise OSError(errno.EADDRINUSE, "")

    def broken(cid: int) -> None:
        raise OSError(errno.EBADF, "bad")

    with pytest.raises(HakoError, match="no free CID"):
        vsock.claim_cid(full)
    with pytest.raises(HakoError, match="bad"):
        vsock.claim_cid(broken)


def test_request_code_is_the_kernels() -> None:
    """_IOW(VHOST_VIRTIO 0xAF, 0x60, __u64), computed as linux/ioctl.h does."""
    assert vsock.VHOST_VSOCK_SET_GUEST_CID == 1 << 30 | 8 << 16 | 0xAF << 8 | 0x60


def test_daemon_command_line() -> None:
    """Both sockets are in the daemon's own directory."""
    assert vsock.command("/bin/vdv", "/run/x.d") == [
        "/bin/vdv",
        "--vm",
        "guest-cid=3,socket=/run/x.d/vhost.sock,uds-path=/run/x.d/vsock.sock,tx-buffer-size=1048576",
    ]
