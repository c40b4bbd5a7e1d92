"""Containers as a test wants them: a busybox rootfs, a runc-like default spec, running one to its end.

Owns: the agent's part of a test, with a loop and the host's ends of the streams. Imports nothing but the
agent and the standard library, because it also runs inside a real guest (tests/vm).
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.api import jsonmap, oci_pb2
from agent.cgroups import Cgroup, NullCgroup
from agent.container.container import Container, prepare
from agent.container.standby import Standby
from agent.linux.loop import Loop
from agent.process.process import Process
from agent.process.stdio import StdioPlan

BUSYBOX = "/bin/busybox"
APPLETS = [
    "sh", "cat", "echo", "id", "ls", "pwd", "env", "mount", "umount", "hostname", "stty", "tty",
    "sleep", "true", "false", "readlink", "touch", "mkdir", "ulimit", "test", "kill", "ps", "wc",
    "head", "dd", "stat", "ln", "rm", "sync", "grep", "cut", "nproc", "printenv", "chroot", "mknod",
    "chmod", "unshare", "nsenter", "ip", "od", "seq", "trap", "tail", "df", "date", "sha1sum",
    "dnsdomainname",
]  # fmt: skip
DEFAULT_CAPS = [
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP",
    "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
]  # fmt: skip
MASKED = [
    "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/scsi", "/sys/firmware",
]  # fmt: skip
NEW_NAMESPACES = ["pid", "mount", "ipc", "uts", "network", "cgroup"]


class StandsBy(Container):
    """A container whose first process has stood by for it, if it fits."""

    def create(self, io: StdioPlan, standby: Standby | None = None) -> None:
        """See Container."""
        standby = standby or Standby(self._shared_namespaces, self.cgroup)
        if not self._pid_namespace_path and standby.fits(self.spec):
            stood_by.append(self.id)
        else:
            standby.end()
            standby = None
        super().create(io, standby)


stood_by: list[str] = []
"""the ids of those that had such a process, in this process"""


class Finished:
    """How a container or exec ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"Finished(status={self.status}, out={self.out!r}, err={self.err!r})"


class Guest:
    """The agent of the stand-in: a loop, a directory for rootfs and bundles, and containers."""

    kind: type[Container] = Container

    def __init__(self, directory: Path, cgroup_root: str = "") -> None:
        self.directory = directory
        self.loop = Loop()
        self._cgroup_root = cgroup_root
        self._count = 0
        prepare()

    def rootfs(self, name: str = "rootfs") -> Path:
        """A busybox root file system, made at the first call."""
        root = self.directory / name
        if not root.exists():
            make_rootfs(root)
        return root

    def spec(self, args: list[str] | str, rootfs: Path | None = None, **changes: Any) -> oci_pb2.Spec:
        """default_spec() as a message; `changes` replace keys of process, linux or the spec itself."""
        mapping = default_spec(["sh", "-c", args] if isinstance(args, str) else args)
        mapping["root"]["path"] = str(rootfs or self.rootfs())
        for key, value in changes.items():
            merge(mapping, key, value)
        message = oci_pb2.Spec()
        jsonmap.fill(message, mapping)
        return message

    def container(self, spec: oci_pb2.Spec, **options: Any) -> Container:
        """A container object, nothing created yet."""
        self._count += 1
        cid = f"c{self._count}"
        bundle = self.directory / "bundles" / cid
        bundle.mkdir(parents=True)
        shared = options.pop("shared_namespaces", {})
        extra = options.pop("extra_pidns", None)
        return self.kind(self.loop, cid, spec, str(bundle), self.cgroup(cid), shared, extra, **options)

    def cgroup(self, cid: str) -> Cgroup:
        """A real cgroup where the test has a v2 tree of its own."""
        return Cgroup(f"/pod/{cid}", self._cgroup_root) if self._cgroup_root else NullCgroup()

    def run(self, args: list[str] | str, stdin: bytes = b"", **changes: Any) -> Finished:
        """Create, start, wait, take the output, remove."""
        container = self.container(self.spec(args, **changes))
        streams = Streams(stdin)
        container.create(streams.plan())
        try:
            container.start()
            return streams.finish(self, container.init)
        finally:
            container.remove()

    def started(self, args: list[str] | str, **changes: Any) -> Container:
        """A running container without streams."""
        container = self.container(self.spec(args, **changes))
        container.create(StdioPlan())
        container.start()
        return container

    def exec(
        self, container: Container, args: list[str] | str, stdin: bytes = b"", **changes: Any
    ) -> Finished:
        """A further process to its end."""
        mapping = {"process": default_spec(["sh", "-c", args] if isinstance(args, str) else args)["process"]}
        for key, value in changes.items():
            merge(mapping, key, value)
        message = oci_pb2.Process()
        jsonmap.fill(message, mapping["process"])
        streams = Streams(stdin)
        self._count += 1
        exec_id = f"e{self._count}"
        process = container.exec(exec_id, message, streams.plan())
        result = streams.finish(self, process)
        container.forget(exec_id)
        return result

    def open_files(self) -> int:
        """How many descriptors the agent has, once it has closed those whose other ends are closed."""
        while True:
            before = len(os.listdir("/proc/self/fd"))
            self.loop.run_once(0.05)
            self.loop.run_once(0)
            if len(os.listdir("/proc/self/fd")) == before:
                return before

    def until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        """Run the loop until `condition()` holds; AssertionError after `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "timed out"
            self.loop.run_once(0.05)

    def wait(self, process: Process, seconds: float = 10) -> int:
        """The exit status of a process."""
        self.until(lambda: process.exit_status is not None, seconds)
        assert process.exit_status is not None
        return process.exit_status


class Streams:
    """The caller's ends of a process's three streams, read by the test while the loop runs."""

    def __init__(self, stdin: bytes = b"", *, terminal: bool = False, keep_stdin: bool = False) -> None:
        self._terminal = terminal
        self._wanted = (0, 1) if terminal else (0, 1, 2)
        self._pairs = [socket.socketpair() for _ in range(3)]
        self._stdin = memoryview(stdin)
        self._keep_stdin = keep_stdin
        self.collected = [bytearray(), bytearray(), bytearray()]
        self._ended = [False, False, False]
        self._next_frame = [0, 0, 0]
        self.clean = [False, False, False]
        """whether the end of an output was told, and not only its socket closed"""
        for ours, _ in self._pairs:
            os.set_blocking(ours.fileno(), False)

    def plan(self) -> StdioPlan:
        """The agent's ends."""
        fds = [self._pairs[number][1].detach() for number in self._wanted]
        return StdioPlan(*fds, terminal=self._terminal)

    def pump(self) -> None:
        """Write input and read output as far as possible without waiting."""
        self._write()
        for number in self._wanted[1:]:
            self._read(number)

    def finish(self, guest: Guest, process: Process, seconds: float = 20) -> Finished:
        """Wait for the exit and the end of both outputs."""

        def over() -> bool:
            return self.outputs_ended() and process.exit_status is not None

        guest.until(over, seconds)
        assert process.exit_status is not None
        self.close()
        return Finished(process.exit_status, self.text(1), self.text(2))

    def outputs_ended(self) -> bool:
        """Whether both outputs have come to their end by now; of a terminal there is only one."""
        self.pump()
        return all(self._ended[number] for number in (1, 2) if number in self._wanted)

    def shows(self, text: str) -> bool:
        """Whether stdout has come to `text`."""
        self.pump()
        return text in self.text(1)

    def text(self, number: int) -> str:
        """What came on stdout (1) or stderr (2) so far; bytes that are no text stay recognizable."""
        return unframe(self.collected[number]).decode("utf-8", "surrogateescape")

    def close(self) -> None:
        """Close the caller's ends."""
        for ours, _ in self._pairs:
            ours.close()

    def _write(self) -> None:
        ours = self._pairs[0][0]
        if self._ended[0]:
            return
        try:
            while self._stdin:
                self._stdin = self._stdin[ours.send(self._stdin) :]
        except BlockingIOError:
            return
        except OSError:
            pass
        if not self._keep_stdin:
            ours.close()
            self._ended[0] = True

    def send(self, data: bytes) -> None:
        """Write to a stdin that was kept open."""
        self._pairs[0][0].sendall(data)

    def _read(self, number: int) -> None:
        while not self._ended[number]:
            try:
                data = self._pairs[number][0].recv(1 << 16)
            except BlockingIOError:
                return
            self.collected[number] += data
            if not data or self._end_was_told(number):
                self._ended[number] = True
                self.clean[number] = bool(data)
                self._pairs[number][0].close()  # the host closes first

    def _end_was_told(self, number: int) -> bool:
        data, at = self.collected[number], self._next_frame[number]
        while at + 4 <= len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            if not size:
                return True
            if at + 4 + size > len(data):
                break
            at += 4 + size
        self._next_frame[number] = at
        return False


def unframe(data: bytes | bytearray) -> bytes:
    """The bytes of a framed output stream, complete frames only."""
    found, at = [], 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append(bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    return b"".join(found)


def merge(mapping: dict[str, Any], key: str, value: Any) -> None:
    """Replace `key` where the default spec has it, else add it to the spec itself; `process=` etc. update."""
    if key in ("process", "linux", "root") and isinstance(value, dict):
        mapping[key].update(value)
    else:
        mapping[key] = value


def default_spec(args: list[str]) -> dict[str, Any]:
    """What `runc spec` and engines make of a plain container."""
    caps = ["CAP_" + name for name in DEFAULT_CAPS]
    return {
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin:/sbin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": True,
        },
        "root": {"path": "", "readonly": False},
        "hostname": "box",
        "mounts": default_mounts(),
        "linux": {
            "namespaces": [{"type": kind} for kind in NEW_NAMESPACES],
            "maskedPaths": MASKED,
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def default_mounts() -> list[dict[str, Any]]:
    """The usual seven."""
    safe = ["nosuid", "noexec", "nodev"]
    small = ["nosuid", "strictatime", "mode=755", "size=65536k"]
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    return [
        _mount("/proc", "proc", "proc", safe),
        _mount("/dev", "tmpfs", "tmpfs", small),
        _mount("/dev/pts", "devpts", "devpts", pts),
        _mount("/dev/shm", "tmpfs", "shm", [*safe, "mode=1777", "size=65536k"]),
        _mount("/dev/mqueue", "mqueue", "mqueue", safe),
        _mount("/sys", "sysfs", "sysfs", [*safe, "ro"]),
        _mount("/run", "tmpfs", "tmpfs", small),
    ]


def _mount(destination: str, fstype: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": fstype, "source": source, "options": options}


def bind(source: Path | str, destination: str, *options: str) -> dict[str, Any]:
    """An OCI bind mount."""
    return _mount(destination, "bind", str(source), ["rbind", "rprivate", *options])


def make_rootfs(root: Path) -> None:
    """A small image: busybox and its links, users, the directories that mounts need, and traps."""
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "home/user", "run", "mnt"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001:User:/home/user:/bin/sh\n"
    )
    (root / "etc/group").write_text("root:x:0:\nuser:x:1001:\nextra:x:2000:user\n")
    (root / "tmp").chmod(0o1777)
    (root / "etc/plain").write_text("no program\n")
