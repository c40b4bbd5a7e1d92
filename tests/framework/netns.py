"""Network namespaces for tests: made by the test, gone with it; the host's own network is never touched."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from agent.linux import syscalls

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000


class Namespace:
    """A network (and, if asked for, mount) namespace that lives as long as its holder process."""

    def __init__(self, *, mounts: bool = False) -> None:
        flags = ["--net", *(["--mount"] if mounts else [])]
        # In a chroot the root is no mount, whose propagation could be changed; `make test-trixie` has done it.
        if not self._hold(flags) and not self._hold([*flags, "--propagation=unchanged"]):
            raise AssertionError("unshare does not work")
        self.pid = self._holder.pid
        self.path = f"/proc/{self.pid}/ns/net"
        self._enter = ["/usr/bin/nsenter", f"--net={self.path}"]
        if mounts:  # root and directory too: entering a mount namespace leads out of a chroot
            proc = f"/proc/{self.pid}"
            self._enter += [f"--mount={proc}/ns/mnt", f"--root={proc}/root", f"--wd={proc}/cwd"]
        self.run("ip", "link", "set", "lo", "up")

    def _hold(self, flags: list[str]) -> bool:
        """Start the holder; whether it came up."""
        self._holder = subprocess.Popen(
            ["/usr/bin/unshare", *flags, "--", "/bin/sh", "-c", "echo up; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._holder.stdout is not None
        return self._holder.stdout.readline() == b"up\n"

    def run(self, *argv: str, check: bool = True, timeout: float = 20, env: dict[str, str] | None = None) -> str:
        """Run a command in the namespace; its stdout."""
        done = subprocess.run(
            [*self._enter, "--", *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **(env or {})},
            cwd=ROOT,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)}: status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def ip(self, command: str) -> str:
        """`ip COMMAND` in the namespace."""
        return self.run("ip", *command.split())

    def ip_json(self, command: str) -> Any:
        """`ip -j COMMAND` in the namespace, parsed."""
        return json.loads(self.run("ip", "-j", *command.split()) or "[]")

    def python(self, code: str, env: dict[str, str] | None = None, timeout: float = 30) -> Any:
        """Run Python code in the namespace with the repository on the path; what it prints, as JSON."""
        return json.loads(self.run(sys.executable, "-c", code, env=env, timeout=timeout) or "null")

    def popen(self, *argv: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command in the namespace; the caller ends it."""
        return subprocess.Popen(
            [*self._enter, "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
            cwd=ROOT,
        )

    def call(self, function: Callable[[], T]) -> T:
        """What `function()` returns in a thread of this process that has entered the network namespace."""
        outcome: list[T] = []

        def work() -> None:
            fd = os.open(self.path, os.O_RDONLY)
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
            os.close(fd)
            outcome.append(function())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return outcome[0]

    def can_ping(self, address: str) -> bool:
        """Whether an echo comes back from `address` within three seconds."""
        ping = ["ping", "-6"] if ":" in address else ["ping"]
        argv = [*self._enter, "--", *ping, "-c1", "-W3", "-q", address]
        return subprocess.run(argv, stdout=subprocess.DEVNULL, timeout=10).returncode == 0

    def close(self) -> None:
        """End the holder, and with it the namespace if nothing else is in it."""
        self._holder.kill()
        self._holder.communicate()


@contextlib.contextmanager
def namespaces(count: int, *, mounts: bool = False) -> Iterator[list[Namespace]]:
    """`count` namespaces, closed at the end."""
    with contextlib.ExitStack() as stack:
        found = [Namespace(mounts=mounts) for _ in range(count)]
        for namespace in found:
            stack.callback(namespace.close)
        yield found


def veth(left: Namespace, left_name: str, right: Namespace, right_name: str) -> None:
    """A veth pair between two namespaces, both ends up."""
    left.ip(f"link add {left_name} type veth peer name {right_name} netns {right.pid}")
    left.ip(f"link set {left_name} up")
    right.ip(f"link set {right_name} up")


def open_tap(name: str) -> int:
    """A tap in the calling thread's namespace, with virtio-net headers as QEMU uses them."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    return fd


class Wire:
    """Carries frames between two descriptors, as QEMU and the guest's virtio-net driver do."""

    def __init__(self, left: int, right: int) -> None:
        self._pairs = {left: right, right: left}
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        poll = select.poll()
        for fd in (*self._pairs, self._stop_read):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _events in poll.poll():
                if fd == self._stop_read:
                    return
                with contextlib.suppress(OSError):  # the other end is down, or there is nothing after all
                    os.write(self._pairs[fd], os.read(fd, 70000))

    def close(self) -> None:
        """Stop carrying; the descriptors stay open."""
        os.write(self._stop_write, b"x")
        self._thread.join()
        os.close(self._stop_read)
        os.close(self._stop_write)
