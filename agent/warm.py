"""Before a VM is saved as a template, and after: the agent does once what every pod will ask of it.

Owns: the throw-away container, what memory a template has. Called by agent.start where the kernel's command line has
agent.template=1, and in a clone when the host asks for it (hako.Pool): an emulator has translated nothing yet of what a
restored VM runs.

A clone goes on where the template was saved, so all that is done here is done for every pod: modules are loaded,
the interpreter has specialized its byte code, the kernel has its caches. It must not depend on who the clone is:
nothing here may draw secrets that live on (the boot id stays unread, no TCP socket is opened), and the host
reseeds the random pool before the first container (CreateSandboxRequest.seed). What stays common to all clones of one
template: the agent's own address space and hash seed, and the kernel's addresses.
"""

from __future__ import annotations

import _socket
import os
import time

from agent import config, sampleprogram, samplespec, sandbox_storages
from agent.api import agent_pb2, pool_pb2
from agent.linux import procfs
from agent.ttrpc import frames
from agent.ttrpc.ttrpc_pb2 import Request, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from agent.linux.loop import Loop

HOME = "/run/hako-warm"
ROOTFS = HOME + "/rootfs"
ANSWER_SECONDS = 60.0
KEPT_FREE = 12 << 20
"""bytes that clear_free_memory leaves, so that nothing is reclaimed for it"""
END_OF_OUTPUT = bytes(4)
"""a chunk of no bytes (agent/api/README.md)"""
LINE_FEED = b"\0\0\0\1\n"
SERVICE = "grpc.AgentService"
NAME = samplespec.NAME


def rehearse(
    make_agent: Callable[[config.Config], Any], wanted: pool_pb2.ExerciseRequest | None = None, share: str = ""
) -> None:
    """A whole pod, as the host would ask for it, of an agent on unix sockets; nothing of either is left.

    `make_agent` makes an agent.start.Agent; `wanted` says what the pod has beside its own; `share` is the tag of the one
    that is mounted already. Raises what fails.
    """
    os.mkdir(HOME, 0o700)
    chosen = config.Config()
    chosen.unix_path = HOME + "/agent"
    chosen.share = share
    agent = make_agent(chosen)
    try:
        agent.sandbox.stand_by()
        _pod(_Host(agent.loop, chosen.unix_path), wanted or pool_pb2.ExerciseRequest())
    finally:
        agent.sandbox.destroy()
        agent.close()
        remove_tree(HOME)


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


class _Host:
    """The host's part, in the agent's own thread: whatever it waits for, the loop runs meanwhile."""

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self._path = path
        self._agent = self._connect(path)
        self._decoder = frames.Decoder()
        self._stream_id = -1
        self._answers: dict[int, bytes] = {}

    def _connect(self, path: str) -> _socket.socket:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        sock.connect(path)  # the agent's backlog takes it
        sock.settimeout(0)
        return sock

    def stream(self, port: int) -> _socket.socket:
        """A raw stream with that number."""
        sock = self._connect(self._path + ".stdio")
        sock.sendall(b"PORT %d\n" % port)
        return sock

    def receive(self, sock: _socket.socket) -> bytes:
        """The next bytes; b"" at the end."""
        while True:
            try:
                return sock.recv(1 << 16)
            except BlockingIOError:
                self._loop.run_once(ANSWER_SECONDS)

    def receive_output(self, sock: _socket.socket) -> bytes:
        """All that comes, chunks with their lengths."""
        said = b""
        while not said.endswith(END_OF_OUTPUT):
            data = self.receive(sock)
            if not data:
                raise RuntimeError("a stream has no end")
            said += data
        sock.close()
        return said

    def call(self, method: str, request: Any) -> None:
        """Raises RuntimeError with what the agent said."""
        self.finish(self.begin(method, request))

    def begin(self, method: str, request: Any) -> tuple[int, str]:
        """A call that may be answered later: its number, and its method for errors."""
        self._stream_id += 2
        envelope = Request(service=SERVICE, method=method, payload=request.SerializeToString())
        self._agent.sendall(frames.encode(self._stream_id, frames.REQUEST, 0, envelope.SerializeToString()))
        return self._stream_id, method

    def finish(self, begun: tuple[int, str]) -> None:
        """The answer to that call. Raises as `call`."""
        number, method = begun
        while number not in self._answers:
            data = self.receive(self._agent)
            if not data:
                raise RuntimeError("the agent hung up")
            self._answers |= {frame.stream_id: frame.payload for frame in self._decoder.feed(data)}
        response = Response()
        response.ParseFromString(self._answers.pop(number))
        if response.status.code:
            raise RuntimeError(f"{method}: {response.status.message}")


def _pod(host: _Host, wanted: pool_pb2.ExerciseRequest) -> None:
    """In the host's order."""
    storages = [*wanted.storages, sandbox_storages.SHM]
    request = agent_pb2.CreateSandboxRequest(hostname=NAME, storages=storages, sandbox_id=NAME, dns=["# warm"])
    request.seed, request.time = bytes(64), time.time_ns()
    host.call("CreateSandbox", request)
    root = wanted.rootfs or ROOTFS
    make_rootfs(root)
    spec = samplespec.container(root)
    given, out, err = host.stream(1), host.stream(2), host.stream(3)
    create = agent_pb2.CreateContainerRequest(container_id=NAME, exec_id=NAME, OCI=spec)
    create.stdin_port, create.stdout_port, create.stderr_port = 1, 2, 3
    host.call("CreateContainer", create)
    given.sendall(b"for nobody\n")
    given.close()
    ended = host.begin("WaitProcess", agent_pb2.WaitProcessRequest(container_id=NAME, exec_id=NAME))
    host.begin("GetOOMEvent", agent_pb2.GetOOMEventRequest())
    host.call("StartContainer", agent_pb2.StartContainerRequest(container_id=NAME))
    check_outputs([host.receive_output(sock) for sock in (out, err)])
    host.finish(ended)
    host.call("StatsContainer", agent_pb2.StatsContainerRequest(container_id=NAME))
    host.call("RemoveContainer", agent_pb2.RemoveContainerRequest(container_id=NAME))


def check_outputs(said: list[bytes]) -> None:
    """Of its stdout and stderr. Raises RuntimeError if the program did not run to its end: then nothing was learned by it."""
    if said != [LINE_FEED + END_OF_OUTPUT, END_OF_OUTPUT]:
        raise RuntimeError(f"the sample program said {said}")


def make_rootfs(root: str) -> None:
    """The directory of the throw-away container."""
    for name in ("/proc", "/sys", "/dev", "/etc"):
        os.makedirs(root + name, 0o755)
    with open(root + sampleprogram.PATH, "wb", opener=lambda path, flags: os.open(path, flags, 0o755)) as file:
        file.write(sampleprogram.image())
    os.symlink(sampleprogram.PATH, root + samplespec.PROGRAM)


def remove_tree(root: str) -> None:
    """Take a directory of ours away; nothing is mounted in it outside the container."""
    for directory, names, files in os.walk(root, topdown=False):
        for name in files:
            os.unlink(f"{directory}/{name}")
        for name in names:
            os.rmdir(f"{directory}/{name}")
    os.rmdir(root)
