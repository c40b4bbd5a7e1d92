"""OCI hooks: run a program with the container's state on its standard input, within its time.

Owns: running one list of hooks and wording its failure. When which list runs is agent.container's affair.
Hooks of the runtime (prestart, createRuntime, poststart, poststop) run in the agent, those of the container
(createContainer, startContainer) in the child. While a hook runs the agent serves nobody: it has one thread.
"""

from __future__ import annotations

import os
import select
import time

from agent.errors import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.api import oci_pb2

DEFAULT_TIMEOUT = 60.0
"""Seconds for a hook that states none: a hook must not stop the agent for ever."""
OUTPUT_KEPT = 1024
SIGKILL, SIGPIPE, SIGXFSZ = 9, 13, 25


class Hook:
    """A hook as plain data, which a child can run after the container's root is its own."""

    __slots__ = ("arguments", "environment", "path", "timeout")

    def __init__(self, path: str, arguments: list[str], environment: dict[str, str], timeout: float) -> None:
        self.path = path
        self.arguments = arguments
        self.environment = environment
        self.timeout = timeout


def plan(hooks: Iterable[oci_pb2.Hook]) -> list[Hook]:
    """The hooks of one list as plain data."""
    return [
        Hook(
            hook.Path,
            list(hook.Args) or [hook.Path],
            dict(entry.partition("=")[::2] for entry in hook.Env),
            float(hook.Timeout) if hook.HasField("Timeout") and hook.Timeout > 0 else DEFAULT_TIMEOUT,
        )
        for hook in hooks
    ]


def state_json(
    cid: str, status: str, pid: int, bundle: str, annotations: dict[str, str], version: str
) -> bytes:
    """The state as OCI gives it to hooks. json is imported here, as most containers have none."""
    import json

    state: dict[str, object] = {"ociVersion": version or "1.0.2", "id": cid, "status": status}
    if pid:
        state["pid"] = pid
    state["bundle"] = bundle
    if annotations:
        state["annotations"] = annotations
    return json.dumps(state).encode()


def run_all(kind: str, hooks: Iterable[Hook], state: bytes) -> None:
    """Run the hooks one after the other. StepError at the first that fails, cannot run or is slow."""
    for index, hook in enumerate(hooks):
        reason = run(hook, state)
        if reason:
            raise StepError(f"{kind} hook {index}", 0, hook.path, reason)


def run(hook: Hook, state: bytes) -> str:
    """Run one hook; why it failed, with the end of its output, or ""."""
    input_fd = _memory_file(state)
    reader, writer = os.pipe()
    try:
        pid = _spawn(hook, input_fd, writer)
    except OSError as error:
        os.close(reader)
        return error.strerror or "cannot be run"
    finally:
        os.close(input_fd)
        os.close(writer)
    try:
        return _wait(pid, hook.timeout, reader)
    finally:
        os.close(reader)


def _memory_file(content: bytes) -> int:
    """A file and not a pipe, so that a hook that does not read cannot block the agent."""
    fd = os.memfd_create("hook-state")
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _spawn(hook: Hook, input_fd: int, output_fd: int) -> int:
    """posix_spawn with the signals that Python ignores set back; descriptors above 2 close by themselves."""
    actions = [(os.POSIX_SPAWN_DUP2, input_fd, 0), (os.POSIX_SPAWN_DUP2, output_fd, 1)]
    actions.append((os.POSIX_SPAWN_DUP2, output_fd, 2))
    return os.posix_spawn(
        hook.path,
        hook.arguments,
        hook.environment,
        file_actions=actions,
        setsigmask=[],
        setsigdef=[SIGPIPE, SIGXFSZ],
    )


def _wait(pid: int, timeout: float, reader: int) -> str:
    pidfd = os.pidfd_open(pid)
    output = b""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(reader, select.POLLIN)
    status = None
    while status is None:
        ready = poll.poll(max(0, int((deadline - time.monotonic()) * 1000)))
        if not ready:
            os.kill(pid, SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)
            return f"took longer than {timeout:g} s{_tail(output)}"
        for fd, _ in ready:
            if fd == pidfd:
                status = os.waitpid(pid, 0)[1]
            else:
                output = _read_more(reader, output, poll)
    os.close(pidfd)
    return _verdict(status, _read_rest(reader, output))


def _read_more(reader: int, output: bytes, poll: select.poll) -> bytes:
    data = os.read(reader, 4096)
    if not data:
        poll.unregister(reader)
    return (output + data)[-OUTPUT_KEPT:]


def _read_rest(reader: int, output: bytes) -> bytes:
    """What the hook wrote last. Children that it left behind may hold the pipe, so nothing is waited for."""
    os.set_blocking(reader, False)
    try:
        return (output + os.read(reader, 65536))[-OUTPUT_KEPT:]
    except BlockingIOError:
        return output


def _verdict(status: int, output: bytes) -> str:
    if status == 0:
        return ""
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}{_tail(output)}"
    return f"exit status {os.WEXITSTATUS(status)}{_tail(output)}"


def _tail(output: bytes) -> str:
    text = output.decode("utf-8", "replace").strip()
    return f", output: {text}" if text else ""
