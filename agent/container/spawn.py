"""The agent's side of making a process: fork, the conversation with the child, and rollback.

Owns: a child from fork to READY (Spawned), and from START to execve. What the child does is child.py. Called
by container.py. The agent has one thread and serves nobody meanwhile, so everything here is bounded in time.
"""

from __future__ import annotations

import os
import time

from agent import namespaces, rlimits
from agent.container import child, handshake, program
from agent.errors import StepError
from agent.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.container.handshake import Channel, Message
    from agent.container.plan import ExecPlan, InitPlan, ProcessPlan
    from agent.process.stdio import Stdio

SETUP_SECONDS = 20.0
"""For all that the child does before READY, hooks not counted; cold code in an emulated guest is slow."""
SIGKILL = 9


class Spawned:
    """A child that waits for START. The one who holds it calls start() or kill()."""

    __slots__ = ("_channel", "_deadline", "master", "pid", "plan")

    def __init__(self, pid: int, channel: Channel, plan: ProcessPlan) -> None:
        self.pid = pid
        """in the agent's pid namespace"""
        self.plan = plan
        self.master = -1
        """the terminal's master; -1 without terminal"""
        self._channel = channel
        self._deadline = time.monotonic() + SETUP_SECONDS

    def fileno(self) -> int:
        """The handshake's descriptor."""
        return self._channel.fileno()

    def next_message(self, extra_seconds: float = 0.0) -> Message:
        """The child's next message; the terminal is taken in passing.

        Raises StepError when the child reports a failure or dies, DeadlineExceeded when it is too slow.
        """
        while True:
            left = self._deadline + extra_seconds - time.monotonic()
            message = self._channel.receive_within(max(left, 0), "setting up the process")
            if message is None:
                raise self._death()
            if message.kind == handshake.FAILED:
                raise handshake.unpack_failure(message.payload)
            if message.kind != handshake.TERMINAL:
                return message
            self.master = message.fds[0]

    def expect(self, kind: int, extra_seconds: float = 0.0) -> None:
        """Wait for a message of this kind."""
        message = self.next_message(extra_seconds)
        if message.kind != kind:
            raise _unexpected(message.kind)

    def answer(self, kind: int, payload: bytes = b"") -> None:
        """Tell the child to go on."""
        try:
            self._channel.send(kind, payload)
        except OSError:
            raise self._death() from None
        self._deadline = time.monotonic() + SETUP_SECONDS

    def start(self, state: bytes, hook_seconds: float) -> None:
        """Set the limits and let the child execute its program. Raises StepError if it cannot."""
        try:
            rlimits.apply(self.pid, self.plan.rlimits)
        except OSError as error:
            raise StepError("set resource limits", error.errno or 0) from error
        self.answer(handshake.START, state)
        message = self._channel.receive_within(SETUP_SECONDS + hook_seconds, "starting the process")
        self._channel.close()
        if message is not None:
            if message.kind != handshake.FAILED:
                raise _unexpected(message.kind)
            raise handshake.unpack_failure(message.payload)

    def kill(self) -> None:
        """End the child and reap it. Idempotent."""
        self._channel.close()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
        if self.pid > 0:
            os.kill(self.pid, SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = -1

    def abandon(self) -> None:
        """End the conversation with a child that somebody else reaps."""
        self._channel.close()

    def release(self) -> int:
        """Give up the terminal's master to the caller."""
        master, self.master = self.master, -1
        return master

    def _death(self) -> StepError:
        """The child ended without a word: the reason that its exit status gives."""
        pid, self.pid = self.pid, -1
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            signum = os.WTERMSIG(status)
            hint = " (memory limit too low?)" if signum == SIGKILL else ""
            detail = f"the child was killed by signal {signum}{hint}"
        else:
            detail = f"the child exited with status {os.WEXITSTATUS(status)}"
        return StepError(program.START_FAILED, 0, detail=detail)


def _unexpected(kind: int) -> StepError:
    return StepError("handshake", 0, detail=f"unexpected {handshake.NAMES.get(kind, kind)}")


def spawn_init(
    plan: InitPlan, stdio: Stdio, run_hooks: Callable[[int], bytes], hook_seconds: float, begun: Spawned | None = None
) -> Spawned:
    """Fork a container's first process, unless it is there already (`begun`), and bring it to READY.

    `run_hooks(pid)` runs the agent's create hooks and returns the state for the container's; `hook_seconds`
    is what the container's own may take. Raises what next_message() raises; then no child is left.
    """
    spaces = plan.namespaces
    through_parent = spaces.has("user") and bool(spaces.new & syscalls.CLONE_NEWPID)
    if through_parent:
        # Where the agent is not PID 1 (tests), the grandchild would go to somebody else.
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    spawned = begun or _fork(
        namespaces.OWN_PID_NAMESPACE if through_parent else _pid_namespace(spaces),
        lambda channel: child.init(plan, channel),
        plan.process,
        stdio,
    )
    try:
        if spaces.new & syscalls.CLONE_NEWUSER:
            spawned.expect(handshake.MAP_IDS)
            namespaces.write_id_maps(spawned.pid, spaces.uid_map, spaces.gid_map)
            spawned.answer(handshake.MAPPED)
        if through_parent:
            _adopt(spawned)
        if plan.wait_for_hooks:
            spawned.expect(handshake.PREPARED)
            spawned.answer(handshake.PROCEED, run_hooks(spawned.pid))
        spawned.expect(handshake.READY, hook_seconds)
    except BaseException:
        spawned.kill()
        raise
    return spawned


def spawn_exec(plan: ExecPlan, pid_namespace: int, stdio: Stdio) -> Spawned:
    """Fork a further process into a container and bring it to READY. Raises as spawn_init()."""
    spawned = _fork(pid_namespace, lambda channel: child.exec_(plan, channel), plan.process, stdio)
    try:
        spawned.expect(handshake.READY)
    except BaseException:
        spawned.kill()
        raise
    return spawned


def _pid_namespace(spaces: namespaces.Plan) -> int:
    if spaces.new & syscalls.CLONE_NEWPID:
        return namespaces.NEW_PID_NAMESPACE
    return spaces.joined.get("pid", namespaces.OWN_PID_NAMESPACE)


def _fork(
    pid_namespace: int, run_child: Callable[[Channel], None], plan: ProcessPlan, stdio: Stdio
) -> Spawned:
    ours, theirs = handshake.pair()
    plan.stdio = stdio.child_ends()
    try:
        pid = namespaces.fork(pid_namespace)
        if pid == 0:
            run_child(theirs)
    except OSError as error:
        ours.close()
        raise StepError("fork", error.errno or 0) from error
    finally:
        theirs.close()
        stdio.close_child_ends()
    return Spawned(pid, ours, plan)


def _adopt(spawned: Spawned) -> None:
    """Take the grandchild in place of the child that forked it, once it is the agent's own."""
    message = spawned.next_message()
    if message.kind != handshake.PID:
        raise _unexpected(message.kind)
    os.waitpid(spawned.pid, 0)
    spawned.pid = int(message.payload)
    spawned.answer(handshake.ADOPTED)
