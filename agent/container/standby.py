"""A process that waits to become a container's first: forked, let go of the agent and in its cgroup before it is asked for.

Owns: that process until it becomes one, and the order that it gets then. What it does is child.py; what it is told
after that spawn.py. Called by agent.sandbox, which has at most one, made in a template or for a VM of the pool: a fork and a
new cgroup are a third of what a first container costs an emulator that has translated nothing yet.

The order is the spec and what the agent has decided, not the plan: the child makes that again, from the same spec, by code
that has just been run. The compiled seccomp filter goes along.

Both write to what they share since the fork, to counts of references at least, and the first write to each page costs a
copy, 30 us of an emulator: so both plan a container once that will not be.
"""

from __future__ import annotations

import marshal
import os

from agent import cgroups, namespaces, samplespec
from agent.api import agent_pb2, oci_pb2
from agent.cgroups import devices
from agent.container import child, handshake
from agent.container import plan as planning
from agent.container.spawn import SETUP_SECONDS, Spawned
from agent.errors import AgentError, StepError
from agent.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.container.handshake import Message
    from agent.container.plan import InitPlan
    from agent.process.stdio import Stdio

OWN_KINDS = frozenset(("pid", "mount", "cgroup", "network", "ipc", "uts"))
"""namespaces that may be the container's own; it was forked into the first, and makes the others itself"""
SIGKILL = 9
SAMPLE_ROOT = "/run"
NO_STREAMS = (-1, -1, -1)


class Standby:
    """`cgroup` is the container's that it becomes. Raises StepError, DeadlineExceeded; nothing is left then."""

    def __init__(self, shared: Mapping[str, str], cgroup: cgroups.Cgroup) -> None:
        """`shared`: kind -> path of the sandbox's namespaces, which it joins."""
        self.cgroup = cgroup
        self._shared = dict(shared)
        self._channel, theirs = handshake.pair()
        cgroup.create(oci_pb2.LinuxResources(Devices=devices.usual()))
        try:
            self._pid = namespaces.fork(namespaces.NEW_PID_NAMESPACE)
            if self._pid == 0:
                child.stand_by(self._shared, cgroup, theirs, plan_of)
            self._pidfd = os.pidfd_open(self._pid)
        except OSError as error:
            cgroup.remove()
            raise StepError("fork", error.errno or 0) from error
        finally:
            theirs.close()
        self._await_it()

    def _practise(self) -> None:
        spec = samplespec.container(SAMPLE_ROOT)
        spec.Linux.ClearField("Seccomp")  # a host sends its filter compiled
        plan = planning.plan_init(samplespec.NAME, spec, SAMPLE_ROOT, self.cgroup, self._shared, None, None)
        try:
            self._channel.send(handshake.PRACTISE, order_for(samplespec.NAME, spec, None, plan, NO_STREAMS)[0])
        except BrokenPipeError:
            pass  # it has ended, and said why

    def _await_it(self) -> None:
        try:
            self._practise()
            message = self._channel.receive_within(SETUP_SECONDS, "making a process that stands by")
            if message is not None and message.kind == handshake.FAILED:
                raise handshake.unpack_failure(message.payload)
            if message is None or message.kind != handshake.STANDING_BY:
                raise StepError("stand by", 0, detail="the process has ended")
        except AgentError:
            self.end()
            raise

    def fits(self, spec: oci_pb2.Spec) -> bool:
        """Whether it can become that container's first process: nothing that it would have to undo, or to be given."""
        kinds = {each.Type: each.Path for each in spec.Linux.Namespaces}
        if any(kinds.pop(kind, None) not in ("", path) for kind, path in self._shared.items()):
            return False
        if not {"pid", "mount"} <= kinds.keys() <= OWN_KINDS or any(kinds.values()):
            return False
        return not any(mount.UIDMappings or mount.GIDMappings or _is_mapped(mount) for mount in spec.Mounts)

    def become(
        self, cid: str, spec: oci_pb2.Spec, user: agent_pb2.StringUser | None, plan: InitPlan, stdio: Stdio
    ) -> Spawned | None:
        """It, on its way to READY; None if it has ended meanwhile or the order is too long, and then it is gone."""
        order, fds = order_for(cid, spec, user, plan, stdio.child_ends())
        try:
            self._channel.send(handshake.BECOME, order, fds)
        except OSError:  # EMSGSIZE: too long
            self._end_process()
            return None  # the streams are still to be given to another
        stdio.close_child_ends()
        os.close(self._pidfd)
        return Spawned(self._pid, self._channel, plan.process)

    def end(self) -> None:
        """Nothing is left of it."""
        self._end_process()
        self.cgroup.remove()

    def _end_process(self) -> None:
        self._channel.close()
        try:
            syscalls.pidfd_send_signal(self._pidfd, SIGKILL)
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except (ProcessLookupError, ChildProcessError):
            pass  # it has ended, and PID 1's sweep of orphans may have reaped it
        os.close(self._pidfd)


def _is_mapped(mount: oci_pb2.Mount) -> bool:
    return any(option in ("idmap", "ridmap") or option.startswith(("idmap=", "ridmap=")) for option in mount.options)


def order_for(
    cid: str, spec: oci_pb2.Spec, user: agent_pb2.StringUser | None, plan: InitPlan, ends: Sequence[int]
) -> tuple[bytes, list[int]]:
    """What it is told, and the streams that go along; `spec` loses its seccomp profile, which `plan` has compiled.

    `ends` are its ends of stdin, stdout and stderr, -1 for none.
    """
    spec.Linux.ClearField("Seccomp")
    process = plan.process
    parts = (
        cid,
        plan.bundle,
        spec.SerializeToString(),
        user.SerializeToString() if user is not None else None,
        process.seccomp,
        process.seccomp_flags,
        process.terminal,
        [number for number, fd in enumerate(ends) if fd >= 0],
    )
    return marshal.dumps(parts), [fd for fd in ends if fd >= 0]


def plan_of(message: Message, shared: Mapping[str, str], cgroup: cgroups.Cgroup) -> InitPlan:
    """The plan that the order was made from; in the child. Its streams have come with the message."""
    cid, bundle, serialized, user, program, flags, terminal, streams = marshal.loads(message.payload)
    spec = oci_pb2.Spec.FromString(serialized)
    string_user = agent_pb2.StringUser.FromString(user) if user is not None else None
    plan = planning.plan_init(cid, spec, bundle, cgroup, shared, None, string_user)
    process = plan.process
    process.seccomp, process.seccomp_flags, process.terminal = program, flags, terminal
    ends = [-1, -1, -1]
    for number, fd in zip(streams, message.fds, strict=True):
        ends[number] = fd
    process.stdio = ends
    return plan
