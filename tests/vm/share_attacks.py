"""Runs as /init of a test guest: what a hostile guest does to the share, one console line per attack.

Owns nothing but the attacks; tests/vm/test_share_attacks.py boots it, prepares the share and looks at the
host afterwards.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from agent.api import LEVEL
from agent.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

SHARE = "/mnt"
ROOT = f"{SHARE}/c1/rootfs"
READ_ONLY = f"{SHARE}/c1/0"


def refused(call: Callable[[], object], *numbers: int) -> None:
    """The call fails with one of these errors."""
    try:
        call()
    except OSError as exc:
        if exc.errno in numbers:
            return
        raise
    raise AssertionError("it worked")


def write(path: str) -> None:
    """Make a file."""
    with open(path, "w") as stream:
        stream.write("written by the guest")


def attack_plant_link_at_the_top() -> None:
    refused(lambda: os.symlink("/", f"{SHARE}/c2"), errno.EROFS)
    refused(lambda: os.symlink("/", f"{SHARE}/c1/7"), errno.EROFS)


def attack_make_directory_at_the_top() -> None:
    refused(lambda: os.mkdir(f"{SHARE}/c2"), errno.EROFS)


def attack_move_a_container_away() -> None:
    refused(lambda: os.rename(f"{SHARE}/c1", f"{SHARE}/c9"), errno.EROFS, errno.EBUSY, errno.EXDEV)
    refused(lambda: os.rename(ROOT, f"{SHARE}/c1/other"), errno.EROFS, errno.EBUSY, errno.EXDEV)


def attack_change_the_top() -> None:
    refused(lambda: os.chmod(SHARE, 0o777), errno.EROFS)
    refused(lambda: os.chmod(f"{SHARE}/c1", 0o777), errno.EROFS)
    refused(lambda: os.setxattr(SHARE, "user.x", b"1"), errno.EROFS, errno.EOPNOTSUPP)


def attack_remount_and_write() -> None:
    for path in (SHARE, READ_ONLY):
        try:
            syscalls.mount(None, path, None, syscalls.MS_REMOUNT | syscalls.MS_BIND)
        except OSError:
            pass
    refused(lambda: write(f"{READ_ONLY}/planted"), errno.EROFS)
    refused(lambda: write(f"{READ_ONLY}/sub/planted"), errno.EROFS)
    refused(lambda: write(f"{SHARE}/planted"), errno.EROFS)
    refused(lambda: os.truncate(f"{READ_ONLY}/file", 0), errno.EROFS)
    refused(lambda: os.unlink(f"{READ_ONLY}/file"), errno.EROFS)


def attack_mount_anew_and_write() -> None:
    os.mkdir("/tmp/again")
    try:
        syscalls.mount("kataShared", "/tmp/again", "virtiofs", 0)
    except OSError:
        return  # the device serves one mount
    refused(lambda: write("/tmp/again/planted"), errno.EROFS)
    refused(lambda: write("/tmp/again/c1/0/planted"), errno.EROFS, errno.ENOENT)


def attack_reach_the_host_by_links() -> None:
    os.symlink("/../../../../../../etc/hako-secret", f"{ROOT}/absolute")
    os.symlink("../../../../../../../etc/hako-secret", f"{ROOT}/relative")
    for name in ("absolute", "relative"):
        refused(lambda name=name: os.stat(f"{ROOT}/{name}"), errno.ENOENT)  # type: ignore[misc]


def attack_link_across_volumes() -> None:
    write(f"{ROOT}/mine")
    refused(lambda: os.link(f"{READ_ONLY}/file", f"{ROOT}/stolen"), errno.EXDEV, errno.EROFS)
    refused(lambda: os.link(f"{ROOT}/mine", f"{READ_ONLY}/planted"), errno.EXDEV, errno.EROFS)


def attack_leave_traps() -> None:
    """Links and nodes for the host to stumble over; they may be made, and must do no harm."""
    for name in ("rootfs", "0", "etc", "proc", "dev"):
        os.symlink("/", f"{ROOT}/{name}")
    os.mknod(f"{ROOT}/node", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(f"{ROOT}/fifo")
    write(f"{ROOT}/suid")
    os.chmod(f"{ROOT}/suid", 0o6755)
    descriptor = os.open(f"{ROOT}/held", os.O_CREAT | os.O_RDWR)  # open while the host takes the share away
    os.write(descriptor, b"x")


def main() -> None:
    """Mount, attack, say so, and stay, so that the host has to take the share from a living guest."""
    for kind, target in (("proc", "/proc"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")):
        try:
            syscalls.mount(kind, target, kind, 0)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
    console = os.open("/dev/hvc0", os.O_RDWR)
    os.write(console, b"hako-agent: ready %d\n" % LEVEL)
    syscalls.mount("kataShared", SHARE, "virtiofs", 0)
    for name, attack in sorted(globals().items()):
        if name.startswith("attack_"):
            try:
                attack()
                verdict = "ok"
            except (OSError, AssertionError) as exc:
                verdict = f"FAIL {exc}"
            os.write(console, f"CHECK {name.removeprefix('attack_')} {verdict}\n".encode())
    os.write(console, b"CHECK all ok\n")
    while True:
        time.sleep(60)
