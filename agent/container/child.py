"""The forked child on its way to the container's program: runs in it, and never returns.

Owns: the order of the steps until the root is the container's; program.py has the rest. What each step does
is in its module (namespaces, mounts, rootfs, devices). The plan is complete before the fork, and every module
is loaded: nothing can be imported any more once the root is the container's. Called by spawn.py through
init() and exec_(), and by standby.py.

A step that fails is told to the agent (handshake FAILED: step, errno, path), and the child is gone.

What protects the agent from the container at this point: no descriptor of the agent is left but the
handshake; the process is not dumpable, so that nobody in a shared pid namespace can trace it or open its
/proc/PID/{exe,fd,root}; procfs is the agent's own until the root is changed, and paths in the container are
resolved by openat2 in its root, never through magic links. The interpreter's file, which /proc/PID/exe names
until execve, lies on a read-only erofs in the guest (CVE-2019-5736 overwrites it on a writable root).
"""

from __future__ import annotations

import gc
import os

from agent import devices, hooks, mounts, namespaces, rootfs
from agent.container import attributes, handshake, premounts, program
from agent.errors import AgentError, StepError, errno_text, step_error
from agent.linux import syscalls
from agent.process import pty
from agent.rootfs import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    from agent.cgroups import Cgroup
    from agent.container.handshake import Channel, Message
    from agent.container.plan import ExecPlan, InitPlan, ProcessPlan

    PlanOf = Callable[[Message, Mapping[str, str], Cgroup], InitPlan]
else:
    import _signal  # signal.py is an enum on top of it

FAILED_STATUS = 1
SCRATCH = "/run"
# Signals that Python, or who started the agent, ignores, which is inherited through execve; and SIGCHLD,
# whose handler belongs to the agent.
RESET_SIGNALS = (
    _signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGPIPE, _signal.SIGTERM, _signal.SIGXFSZ,
    _signal.SIGCHLD,
)  # fmt: skip


class Child:
    """What the steps share: the way to the agent, and the name of the step that is under way."""

    __slots__ = ("channel", "null", "step")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.null = -1
        """the agent's /dev/null: the container's could be anything"""
        self.step = "fork"

    def message(self, kind: int) -> Message:
        """The agent's next message; the child ends when the agent is gone or has given up."""
        message = self.channel.receive()
        if message is None or message.kind != kind:
            os._exit(FAILED_STATUS)
        return message

    def wait_for(self, kind: int) -> bytes:
        """The payload of the agent's next message, as message() has it."""
        return self.message(kind).payload


def init(plan: InitPlan, channel: Channel) -> NoReturn:
    """Become the container's first process."""
    _run(lambda child: _init(plan, child), channel)


def stand_by(shared: Mapping[str, str], cgroup: Cgroup, channel: Channel, plan_of: PlanOf) -> NoReturn:
    """Become a container's first process when the agent says which; `plan_of` makes the plan of its message.

    `shared`: kind -> path of the sandbox's namespaces; `cgroup` is the container's.
    """
    _run(lambda child: _stand_by(shared, cgroup, child, plan_of), channel)


def exec_(plan: ExecPlan, channel: Channel) -> NoReturn:
    """Become a further process of a container."""
    _run(lambda child: _exec(plan, child), channel)


def _run(steps: Callable[[Child], None], channel: Channel) -> NoReturn:
    child = Child(channel)
    gc.disable()
    try:
        steps(child)
        error = StepError(child.step, 0, detail="the program was not executed")
    except StepError as reason:
        error = reason
    except AgentError as reason:
        error = StepError(child.step, 0, detail=str(reason))
    except OSError as reason:
        error = step_error(child.step, reason)
    except BaseException as reason:  # noqa: BLE001 - the child's last word; nobody is above it
        error = StepError(child.step, 0, detail=f"{type(reason).__name__}: {reason}")
    try:
        channel.send(handshake.FAILED, handshake.pack_failure(error))
    except OSError:
        pass  # the agent has gone, or a seccomp filter is in force already
    os._exit(FAILED_STATUS)


# --- the container's first process --------------------------------------------------------------------------


def _init(plan: InitPlan, child: Child) -> None:
    _detach(child, [*plan.process.stdio, *plan.namespaces.joined.values(), *_userns_fds(plan)])
    child.step = "join cgroup"
    plan.cgroup.add(os.getpid())
    _make(plan, child)


def _stand_by(shared: Mapping[str, str], cgroup: Cgroup, child: Child, plan_of: PlanOf) -> None:
    """All that is the same for every container, then the rest for the one that is asked for.

    A mount namespace is made then, with what is mounted by then.
    """
    _detach(child, [])
    child.step = "join cgroup"
    cgroup.add(os.getpid())
    child.step = "namespaces"
    for kind, path in shared.items():
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(fd, namespaces.FLAGS[kind])
        os.close(fd)
    child.step = "mounts"
    premounted = premounts.Premounts(SCRATCH)
    child.step = "plan"
    program.practise(plan_of(child.message(handshake.PRACTISE), shared, cgroup).process)
    child.channel.send(handshake.STANDING_BY)
    plan = plan_of(child.message(handshake.BECOME), shared, cgroup)
    premounted.serve(plan)
    _make(plan, child)


def _make(plan: InitPlan, child: Child) -> None:
    """The container, around this process."""
    child.step = "namespaces"
    root = _enter_user_namespace(plan, child) if _has_user(plan) else _enter_namespaces(plan, child)
    _set_names(plan, child)
    _populate(plan, child, root)
    terminal = _open_terminal(plan.process, child, root, fallback=True)
    if terminal >= 0:
        child.step = "console"
        devices.bind_console(root, terminal)
    _run_create_hooks(plan, child)
    _write_sysctls(plan, child)
    _seal(plan, child, root)
    child.step = "pivot_root"
    rootfs.pivot(root, shared=bool(plan.propagation & syscalls.MS_SHARED))
    rootfs.set_root_propagation(root, plan.propagation)
    program.become(plan.process, child, root, terminal, plan.keyring, plan.hooks_start_container)


def _detach(child: Child, keep: list[int]) -> None:
    """Let go of what a fork inherits from the agent, but for the descriptors `keep`."""
    child.step = "detach from the agent"
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    _signal.set_wakeup_fd(-1)  # the number will be another file's
    for signum in RESET_SIGNALS:
        _signal.signal(signum, _signal.SIG_DFL)
    close_all_but([child.channel.fileno(), *keep])
    child.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.umask(0)


def close_all_but(keep: list[int]) -> None:
    """Close every descriptor above 2 that is not in `keep`."""
    first = 3
    for fd in sorted(fd for fd in keep if fd > 2):
        if fd > first:
            syscalls.close_range(first, fd - 1)
        first = fd + 1
    syscalls.close_range(first, 0x7FFFFFFF)


def _userns_fds(plan: InitPlan) -> list[int]:
    return [operation.userns for operation in plan.mounts if operation.userns >= 0]


def _has_user(plan: InitPlan) -> bool:
    return plan.namespaces.has("user")


def _enter_namespaces(plan: InitPlan, child: Child) -> Root:
    """Without a user namespace: join, unshare, and take the rootfs."""
    spaces = plan.namespaces
    for kind in spaces.joined:
        if kind != "pid":
            namespaces.join(spaces, kind)
    _unshare(spaces, spaces.new, _time_offsets(spaces))
    child.step = "rootfs"
    rootfs.set_tree_propagation(plan.rootfs, plan.propagation)
    root = rootfs.attach(rootfs.clone_tree(plan.rootfs), plan.rootfs)
    _stage(plan, child)
    return root


def _time_offsets(spaces: namespaces.Plan) -> int:
    return namespaces.open_time_offsets() if spaces.new & syscalls.CLONE_NEWTIME else -1


def _unshare(spaces: namespaces.Plan, kinds: int, time_offsets: int) -> None:
    """Make the new namespaces of `kinds`; the pid namespace was made by the fork."""
    alone = syscalls.CLONE_NEWPID | syscalls.CLONE_NEWTIME | syscalls.CLONE_NEWUSER
    syscalls.unshare(kinds & ~alone)
    if kinds & syscalls.CLONE_NEWTIME:
        namespaces.enter_new_time_namespace(time_offsets, spaces.time_offsets)
    if kinds & syscalls.CLONE_NEWNET:
        namespaces.bring_up_loopback()


def _stage(plan: InitPlan, child: Child) -> None:
    for operation in plan.mounts:
        try:
            operation.stage()
        except OSError as error:
            raise _mount_error(operation, error) from error
    child.step = "rootfs"


def _mount_error(operation: mounts.MountOp, error: OSError) -> StepError:
    return StepError("mount " + operation.describe(), error.errno or 0, detail=errno_text(error.errno or 0))


def _enter_user_namespace(plan: InitPlan, child: Child) -> Root:
    """With one: first all that needs the agent's privileges, then the namespace, then what it must own.

    The sources of the mounts are copied and the device nodes are made outside, in a mount namespace of
    their own, and attached inside. A new pid namespace must belong to the user namespace (or its procfs
    could not be mounted), so it is made here and needs one more fork.
    """
    spaces = plan.namespaces
    for kind in spaces.joined:
        if kind not in ("pid", "user"):
            namespaces.join(spaces, kind)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    rootfs.set_tree_propagation(plan.rootfs, plan.propagation)
    tree = rootfs.clone_tree(plan.rootfs)
    _stage(plan, child)
    child.step = "devices"
    devices.stage(plan.devices, plan.bundle, spaces.uid_map, spaces.gid_map)
    time_offsets = _time_offsets(spaces)
    child.step = "user namespace"
    if "user" in spaces.joined:
        namespaces.join(spaces, "user")
    else:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        child.channel.send(handshake.MAP_IDS)
        child.wait_for(handshake.MAPPED)
    _become_root()
    _unshare(spaces, spaces.new | syscalls.CLONE_NEWNS, time_offsets)
    if spaces.new & syscalls.CLONE_NEWPID:
        syscalls.unshare(syscalls.CLONE_NEWPID)
        _fork_again(child)
    child.step = "rootfs"
    return rootfs.attach(tree, plan.rootfs)


def _become_root() -> None:
    """Root of the user namespace: until then the process has an id that nothing maps."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _fork_again(child: Child) -> None:
    pid = os.fork()
    if pid:
        child.channel.send(handshake.PID, b"%d" % pid)
        os._exit(0)
    child.wait_for(handshake.ADOPTED)


def _set_names(plan: InitPlan, child: Child) -> None:
    child.step = "hostname"
    if plan.hostname:
        syscalls.sethostname(plan.hostname)
    if plan.domainname:
        syscalls.setdomainname(plan.domainname)


def _populate(plan: InitPlan, child: Child, root: Root) -> None:
    """Mounts in their order, then the devices."""
    for operation in plan.mounts:
        try:
            operation.attach(root)
        except OSError as error:
            raise _mount_error(operation, error) from error
    child.step = "devices"
    if _has_user(plan):
        devices.attach(root, plan.devices)
    else:
        devices.create(root, plan.devices)
    if plan.devices and not plan.links_made:
        devices.link(root)


def _open_terminal(process: ProcessPlan, child: Child, root: Root, *, fallback: bool) -> int:
    """The slave of a new terminal, whose master goes to the agent; -1 for a process without terminal.

    `fallback`: "/" is still the agent's, whose devpts serves a container that has none.
    """
    if not process.terminal:
        return -1
    child.step = "terminal"
    master, slave = pty.open_pair(root, fallback=fallback)
    if all(process.console_size):
        pty.set_size(master, *process.console_size)
    child.channel.send(handshake.TERMINAL, fds=(master,))
    os.close(master)
    return slave


def _run_create_hooks(plan: InitPlan, child: Child) -> None:
    """Stop for the agent's hooks, then run the container's own; the rootfs is complete and still writable."""
    if not plan.wait_for_hooks:
        return
    child.channel.send(handshake.PREPARED)
    state = child.wait_for(handshake.PROCEED)
    hooks.run_all("createContainer", plan.hooks_create_container, state)


def _write_sysctls(plan: InitPlan, child: Child) -> None:
    """Through the agent's procfs: the namespaces are this process's, the files cannot be the image's."""
    child.step = "sysctl"
    for path, value in plan.sysctls:
        namespaces.write_file("/proc/sys/" + path, value)


def _seal(plan: InitPlan, child: Child, root: Root) -> None:
    """Hide and protect what the spec says; the working directory must exist before the root is read-only."""
    child.step = "working directory"
    _make_cwd(plan.process, root)
    child.step = "masked paths"
    rootfs.mask(root, plan.masked_paths)
    child.step = "read-only paths"
    rootfs.make_readonly(root, plan.readonly_paths)
    child.step = "rootfs"
    mounts.seal(root, plan.mounts)
    if plan.readonly:
        rootfs.make_root_readonly(root)


def _make_cwd(process: ProcessPlan, root: Root) -> None:
    try:
        os.close(root.directory(process.cwd))
    except PermissionError:
        pass  # root has no right there (virtio-fs, NFS); the process's own user may have
    except OSError as error:
        raise program.cwd_error(process, error) from None


# --- a further process --------------------------------------------------------------------------------------


def _exec(plan: ExecPlan, child: Child) -> None:
    process = plan.process
    attributes.set_cpus(process.attributes.cpus_first)
    child.step = "join cgroup"
    plan.cgroup.add(os.getpid(), plan.beside)
    _detach(child, [*process.stdio, *(fd for _, fd in plan.joins)])
    child.step = "join namespaces"
    for kind, fd in plan.joins:
        syscalls.setns(fd, namespaces.FLAGS[kind])
        os.close(fd)
        if kind == "user":
            _become_root()
    root = Root(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    terminal = _open_terminal(process, child, root, fallback=False)
    program.become(process, child, root, terminal, plan.keyring, [])
