"""Before a VM is saved as a template, and after: the agent does once what every pod will ask of it.

Owns: the throw-away container, what memory a template has, the wait of a clone for its own devices. Called by
agent.start where the kernel's command line has agent.template=1.

A clone goes on where the template was saved, so all that is done here is done for every pod: modules are loaded,
the interpreter has specialized its byte code, the kernel has its caches. It must not depend on who the clone is:
nothing here may draw secrets that live on (the boot id stays unread, no TCP socket is opened), and the host
reseeds the random pool before the first container (ReseedRandomDev). What stays common to all clones of one
template: the agent's own address space and hash seed, and the kernel's addresses.
"""

from __future__ import annotations

import _socket
import os
import struct

from agent.api import agent_pb2, empty_pb2, jsonmap, oci_pb2
from agent.linux import procfs, uevent
from agent.ttrpc import frames
from agent.ttrpc.ttrpc_pb2 import Request, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.linux.loop import Loop
    from agent.sandbox import Sandbox
    from agent.ttrpc.server import Server

ROOTFS = "/run/hako-warm"
VSOCK_DRIVER = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"
DRIVER_OK = 4
"""virtio 1.1, 2.1: the driver is set up. The device's directory is there before its driver is."""
ANSWER_SECONDS = 60.0
FOR_EVER = 1e9
KEPT_FREE = 12 << 20
"""bytes that clear_free_memory leaves, so that nothing is reclaimed for it"""
SERVICE = "grpc.AgentService"
NAME = "warm"

_ADDRESS = 0x400000
_HEADERS = 64 + 56
_CODE = (
    b"\xb8\x01\x00\x00\x00\xbf\x01\x00\x00\x00\xbe"
    + struct.pack("<I", _ADDRESS + _HEADERS + 29)
    # mov eax, 1 (write); mov edi, 1; mov esi, text; mov edx, 1; syscall; xor edi, edi; push 60 (exit); pop rax
    + b"\xba\x01\x00\x00\x00\x0f\x05\x31\xff\x6a\x3c\x58\x0f\x05\n"
)


# --- before ---------------------------------------------------------------------------------------------------


def run_once(loop: Loop, server: Server, sandbox: Sandbox) -> None:
    """A whole pod, as the host would ask for it; nothing of it is left. Raises what fails."""
    drop_caches()
    ours, theirs = _socket.socketpair()
    server.attach(theirs)
    caller = _Caller(loop, ours)
    make_rootfs(ROOTFS)
    try:
        _pod(caller)
    finally:
        sandbox.destroy()
        remove_rootfs(ROOTFS)
        ours.close()
    while server.connections:
        loop.run_once(ANSWER_SECONDS)


def drop_caches() -> None:
    """What was read to boot is not needed again: each page would be copied for every clone."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def clear_free_memory() -> None:
    """Fill free memory with zeros and free it again: the host saves and copies no pages of zeros."""
    size = _free_memory() - KEPT_FREE
    if size <= 0:
        return
    fd = os.memfd_create("zeros")
    try:
        os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)


def _free_memory() -> int:
    for line in procfs.read("meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemFree":
            return int(value.split()[0]) << 10
    return 0


class _Caller:
    """The host's end of a connection, in the agent's own thread: each call runs the loop until it is answered."""

    def __init__(self, loop: Loop, sock: _socket.socket) -> None:
        sock.settimeout(0)
        self._loop = loop
        self._sock = sock
        self._decoder = frames.Decoder()
        self._stream_id = -1

    def __call__(self, method: str, request: Any, answer: Any = None) -> Any:
        """Raises RuntimeError with what the agent said."""
        self._stream_id += 2
        envelope = Request(service=SERVICE, method=method, payload=request.SerializeToString())
        self._sock.sendall(frames.encode(self._stream_id, frames.REQUEST, 0, envelope.SerializeToString()))
        response = Response()
        response.ParseFromString(self._next().payload)
        if response.status.code:
            raise RuntimeError(f"{method}: {response.status.message}")
        answer = answer or empty_pb2.Empty()
        answer.ParseFromString(response.payload)
        return answer

    def _next(self) -> frames.Frame:
        while True:
            self._loop.run_once(ANSWER_SECONDS)
            try:
                data = self._sock.recv(1 << 16)
            except BlockingIOError:
                continue
            found = self._decoder.feed(data)
            if found:
                return found[0]


def _pod(call: _Caller) -> None:
    """In the host's order."""
    call("ReseedRandomDev", agent_pb2.ReseedRandomDevRequest(data=bytes(64)))
    call("GetGuestDetails", agent_pb2.GuestDetailsRequest(mem_block_size=True), agent_pb2.GuestDetailsResponse())
    shm = agent_pb2.Storage(
        driver="ephemeral", source="shm", fstype="tmpfs", options=["mode=1777"], mount_point="/run/kata-containers/sandbox/shm"
    )
    call("CreateSandbox", agent_pb2.CreateSandboxRequest(hostname=NAME, storages=[shm], sandbox_id=NAME, dns=["# warm"]))
    spec = oci_pb2.Spec()
    jsonmap.fill(spec, spec_of(ROOTFS))
    call("CreateContainer", agent_pb2.CreateContainerRequest(container_id=NAME, exec_id=NAME, OCI=spec))
    call("StartContainer", agent_pb2.StartContainerRequest(container_id=NAME))
    call("StatsContainer", agent_pb2.StatsContainerRequest(container_id=NAME), agent_pb2.StatsContainerResponse())
    output = agent_pb2.ReadStreamRequest(container_id=NAME, exec_id=NAME, len=4096)
    call("ReadStdout", output, agent_pb2.ReadStreamResponse())
    call("WaitProcess", agent_pb2.WaitProcessRequest(container_id=NAME), agent_pb2.WaitProcessResponse())
    call("RemoveContainer", agent_pb2.RemoveContainerRequest(container_id=NAME))


def program() -> bytes:
    """A static ELF program (elf(5)) that writes a line feed and ends: the image has none that is as small."""
    ident = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)
    size = _HEADERS + len(_CODE)
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _ADDRESS + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 4096)
    return ident + header + segment + _CODE


def make_rootfs(root: str) -> None:
    """The directory of the throw-away container."""
    for name in ("", "/proc", "/sys", "/dev", "/etc"):
        os.mkdir(root + name, 0o755)
    with open(root + "/program", "wb", opener=lambda path, flags: os.open(path, flags, 0o755)) as file:
        file.write(program())


def remove_rootfs(root: str) -> None:
    """Take it away; nothing is mounted in it outside the container."""
    os.unlink(root + "/program")
    for directory, _names, files in os.walk(root, topdown=False):
        for name in files:
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)


def spec_of(rootfs: str) -> dict[str, Any]:
    """A spec that has of everything something, as `hako run` and engines have."""
    caps = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"]
    safe = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [10]},
            "args": ["/program"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": rootfs, "readonly": False},
        "hostname": NAME,
        "mounts": [
            _mount("/proc", "proc", "proc", safe),
            _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
            _mount("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            _mount("/dev/shm", "bind", "/run/kata-containers/sandbox/shm", ["rbind", *safe]),
            _mount("/dev/mqueue", "mqueue", "mqueue", safe),
            _mount("/sys", "sysfs", "sysfs", [*safe, "ro"]),
            _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")],
            "resources": {
                "cpu": {"shares": 1024, "quota": 100000, "period": 100000},
                "memory": {"limit": 64 << 20},
                "pids": {"limit": 100},
                "devices": [{"allow": False, "access": "rwm"}],
            },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/acpi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/sys", "/proc/irq"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 1,
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["read", "write", "execve", "exit", "exit_group"], "action": "SCMP_ACT_ALLOW"}],
            },
        },
    }


def _mount(destination: str, fstype: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": fstype, "source": source, "options": options}


# --- after ----------------------------------------------------------------------------------------------------


def await_vsock() -> None:
    """Until the host has plugged a vsock device, which happens to a clone only."""
    uevent.wait_for(_vsock_is_up, ("virtio",), FOR_EVER)


def _vsock_is_up(driver: str = VSOCK_DRIVER) -> bool | None:
    try:
        names = [name for name in os.listdir(driver) if name.startswith("virtio")]
    except FileNotFoundError:
        return None
    return True if any(_status(f"{driver}/{name}/status") & DRIVER_OK for name in names) else None


def _status(path: str) -> int:
    try:
        with open(path) as file:
            return int(file.read(), 16)
    except (OSError, ValueError):
        return 0
