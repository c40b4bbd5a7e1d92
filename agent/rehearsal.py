"""Beside the agent of a clone: a child that makes a throw-away container, so that the code of the real one is translated.

Owns: that child, from its fork before the template is saved to its end, and what it tells of itself. Must not know: pods,
the protocol. Called by agent.start where the kernel's command line has agent.rehearse=1: an emulated VM with several vCPUs.

    begin()   in the template: the child makes the plan, the cgroup and the waiting process of its container, and waits
    go()      in a clone, when the agent has its vsock device and waits for the host
    span()    when it was, once it is over

An emulator translates code when it runs for the first time, a template keeps no translation, and a container's first
making and exec cost 0.1 s of that. QEMU's vCPUs share what they have translated, by its physical address, and a
forked child's code is where the agent's is. So while the agent of a clone waits for the host and makes the sandbox, the
child makes a container on another vCPU.

Of the pod it can touch nothing: it is forked when the agent has no socket yet, its mounts are in a namespace of its own
with a /run of its own, its cgroup is beside the containers', and it runs only when its vCPU has nothing else to do
(SCHED_IDLE, sched(7)). All of it ends with its processes, at the latest by SIGALRM. The random numbers that the kernel takes
for it (addresses, canaries) end with it too.
"""

from __future__ import annotations

import _socket
import os
import struct
import time

from agent import cgroups, log, samplespec, shared_namespaces, spans, warm
from agent.container.container import Container
from agent.container.standby import Standby
from agent.errors import DeadlineExceeded
from agent.linux import syscalls
from agent.linux.loop import Loop
from agent.process.stdio import StdioPlan

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

    from agent.container.plan import InitPlan
    from agent.container.spawn import Spawned
    from agent.process.stdio import Stdio
else:
    import _signal as signal  # the signal module would bring in enum

NAME = "rehearsal"
HOME = "/run/hako-rehearsal"
CGROUP = "/hako-rehearsal"
READY, GO = b"r", b"g"
READY_SECONDS = 20.0
WHOLE_SECONDS = 20
"""from go() to its end"""
STREAM_SECONDS = 5.0
FIRST_TO_DIE = 1000
"""oom_score_adj"""

_SPAN = struct.Struct("qq")
_child: list[_socket.socket] = []
"""the conversation with it, until it has told its span"""


def begin() -> None:
    """Fork the child and wait until it waits. What goes wrong with it is logged, no more."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    if os.fork() == 0:
        ours.close()
        _live(theirs)
    theirs.close()
    ours.settimeout(READY_SECONDS)
    try:
        ready = ours.recv(1) == READY
    except TimeoutError:
        ready = False
    if not ready:
        log.error("there will be no rehearsal")
        ours.close()
        return
    ours.settimeout(0)
    _child.append(ours)
    spans.ask(span)


def go() -> None:
    """Let it run; does nothing where there is none."""
    for conversation in _child:
        try:
            conversation.send(GO, _socket.MSG_NOSIGNAL)
        except OSError:
            pass  # it has ended


def span() -> tuple[str, str, int, int] | None:
    """When it was, as agent.spans has them, once: None while it is not over, if it failed, and where there is none."""
    if not _child:
        return None
    try:
        data = _child[0].recv(_SPAN.size)
    except BlockingIOError:
        return None
    except OSError:
        data = b""  # it ended before it read our word
    _child.pop().close()
    return (NAME, "", *_SPAN.unpack(data)) if data else None


# --- the child ------------------------------------------------------------------------------------------------


def _live(agent: _socket.socket) -> None:
    """Does not return."""
    try:
        _seclude()
        rehearsed = _Rehearsed(lambda: _await_word(agent))
        rehearsed.go_through()
        agent.send(_SPAN.pack(rehearsed.began, time.monotonic_ns()))
    except BaseException as exc:  # noqa: BLE001 - nobody is above it, and the pod goes on without it
        log.exception(NAME, exc)
    os._exit(0)


def _seclude() -> None:
    """Mounts that nobody else sees and that go with us; the last CPU and memory, as long as nobody else wants them."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("tmpfs", "/run", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=0755")
    os.makedirs(HOME, 0o700)
    os.makedirs(samplespec.SHM)
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(FIRST_TO_DIE))
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _await_word(agent: _socket.socket) -> None:
    """Until the agent says so; without an agent there is nothing to do."""
    agent.send(READY)
    if agent.recv(1) != GO:
        os._exit(0)
    signal.alarm(WHOLE_SECONDS)


class _Rehearsed(Container):
    """A container whose first process, which stands by as a pod's does, goes on when `wait` returns.

    `began`: when that was, by the guest's monotonic clock.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        warm.make_rootfs(HOME)
        spec = samplespec.container(HOME)
        self.loop = Loop()
        spaces, cgroup = shared_namespaces.create(), cgroups.Cgroup(CGROUP)
        super().__init__(self.loop, NAME, spec, HOME, cgroup, spaces, None)
        self._first = Standby(spaces, cgroup)
        self.began = 0
        self._wait = wait

    def _spawn(self, plan: InitPlan, stdio: Stdio) -> Spawned:
        self._wait()
        self.began = time.monotonic_ns()
        return super()._spawn(plan, stdio)

    def go_through(self) -> None:
        """From create to remove, with streams as a host has them. Raises AgentError, OSError."""
        pairs = [_socket.socketpair() for _ in range(2)]
        self.create(StdioPlan(None, *(theirs.detach() for _, theirs in pairs)), self._first)
        try:
            self.start()
            warm.check_outputs([self._read(ours) for ours, _ in pairs])
        finally:
            self.remove()

    def _read(self, stream: _socket.socket) -> bytes:
        """What the program writes, to its end."""
        stream.settimeout(0)
        said, deadline = b"", time.monotonic() + STREAM_SECONDS
        while not said.endswith(warm.END_OF_OUTPUT):
            if time.monotonic() > deadline:
                raise DeadlineExceeded("the output of the rehearsal", STREAM_SECONDS)
            try:
                said += stream.recv(1 << 12)
            except BlockingIOError:
                self.loop.run_once(STREAM_SECONDS)
        stream.close()
        return said
