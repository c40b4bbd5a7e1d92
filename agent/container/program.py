"""The last part of a child's way, inside the container already: from root to the process's own program.

Owns: session, streams, user, working directory, looking the program up, dropping privileges, seccomp, execve,
and the words of what fails in that. How the container around it was made is child.py, which calls become().
"""

from __future__ import annotations

import errno
import os
import stat

from agent import capabilities, hooks, seccomp, users
from agent.container import attributes, handshake
from agent.container.plan import DEFAULT_PATH
from agent.errors import StepError, errno_text
from agent.linux import syscalls
from agent.process import pty
from agent.rootfs import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.container.child import Child
    from agent.container.plan import ProcessPlan

START_FAILED = "unable to start container process"


def become(
    process: ProcessPlan,
    child: Child,
    root: Root,
    terminal: int,
    keyring: str,
    start_hooks: list[hooks.Hook],
) -> None:
    """From a process inside the container to its program. READY is sent in the middle, START awaited."""
    child.step = "session"
    os.setsid()
    _join_keyring(keyring)
    attributes.apply(process.attributes)
    child.step = "user"
    user = users.resolve(process.identity, want_home="HOME" not in process.environment)
    process.environment.setdefault("HOME", user.home)
    _set_stdio(process, child, terminal, user)
    child.step = START_FAILED
    entered = _enter_cwd(process, root)
    os.close(root.fd)
    program = find_program(process)
    child.step = "privileges"
    _drop_privileges(process, user)
    if not entered:
        _enter_cwd_as_user(process)
    os.umask(process.identity.umask)
    child.channel.send(handshake.READY)
    state = child.wait_for(handshake.START)
    hooks.run_all("startContainer", start_hooks, state)
    # Only 0, 1 and 2 survive. Python's own descriptors close by themselves; this is for all others. Before the filter, which
    # need not allow it, nor the message that it was refused.
    syscalls.close_range(3, 0x7FFFFFFF, syscalls.CLOSE_RANGE_CLOEXEC)
    child.step = "seccomp"
    if process.seccomp:
        seccomp.install(process.seccomp, process.seccomp_flags)
        if not process.no_new_privs:
            capabilities.drop_extra(process.capabilities)
    child.step = START_FAILED
    _execute(process, program)


def practise(process: ProcessPlan) -> None:
    """Look the user and the program up, which are nobody's yet: the pages that this writes to are the child's own then."""
    users.resolve(process.identity, want_home=True)
    try:
        find_program(process)
    except StepError:
        pass


def _join_keyring(name: str) -> None:
    """A session keyring of its own, so that the container sees none of the agent's keys."""
    try:
        serial = syscalls.keyctl_join_session(name)
        # The process's user must be able to look keys up in it (KEY_USR_SEARCH), as runc has it.
        syscalls.keyctl_setperm(serial, 0x3F3F0000 | 0x00080000)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # the kernel is built without keys
            raise


def _set_stdio(process: ProcessPlan, child: Child, terminal: int, user: users.User) -> None:
    child.step = "stdio"
    if terminal >= 0:
        pty.make_controlling(terminal)
        _give_to_user(terminal, user)
        for target in (0, 1, 2):
            os.dup2(terminal, target)
        os.close(terminal)
        return
    for target, fd in enumerate(process.stdio):
        if fd >= 0:
            _give_to_user(fd, user)
            os.dup2(fd, target)
            os.close(fd)
        else:
            os.dup2(child.null, target)


def _give_to_user(fd: int, user: users.User) -> None:
    """The process may open its own streams again (/dev/stdout) though it is not root."""
    if user.uid:
        try:
            os.fchown(fd, user.uid, -1)
        except OSError as error:
            # An id that the user namespace does not map, a read-only devpts: the streams work all the same.
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS):
                raise


def _enter_cwd(process: ProcessPlan, root: Root) -> bool:
    """Go to the working directory as root; False when root has no right there."""
    try:
        fd = root.open(process.cwd, os.O_PATH | os.O_DIRECTORY)
        os.fchdir(fd)
        os.close(fd)
    except PermissionError:
        return False
    except OSError as error:
        raise cwd_error(process, error) from None
    _check_cwd(process)
    return True


def _enter_cwd_as_user(process: ProcessPlan) -> None:
    try:
        fd = syscalls.openat2(
            syscalls.AT_FDCWD, process.cwd, os.O_PATH | os.O_DIRECTORY, 0, syscalls.RESOLVE_NO_MAGICLINKS
        )
        os.fchdir(fd)
        os.close(fd)
    except OSError as error:
        raise cwd_error(process, error) from None
    _check_cwd(process)


def _check_cwd(process: ProcessPlan) -> None:
    """The kernel itself says whether the working directory is below the root (CVE-2024-21626)."""
    try:
        inside = os.getcwd().startswith("/")
    except OSError:
        inside = False
    if not inside:
        detail = "current working directory is outside of container mount namespace root"
        raise StepError(START_FAILED, errno.EPERM, process.cwd, detail)


def cwd_error(process: ProcessPlan, error: OSError) -> StepError:
    text = f'chdir to cwd ("{process.cwd}") failed: {errno_text(error.errno or 0)}'
    return StepError(START_FAILED, error.errno or 0, detail=text)


def find_program(process: ProcessPlan) -> str:
    """The path of args[0], looked up in the container's PATH. Raises StepError in the words of runc."""
    name = process.args[0]
    if "/" in name:
        reason = _why_not_executable(name)
        if reason:
            text = f"stat {name}: {errno_text(reason)}" if reason == errno.ENOENT else errno_text(reason)
            raise StepError(START_FAILED, reason, detail=f'exec: "{name}": {text}')
        return name
    for directory in process.environment.get("PATH", DEFAULT_PATH).split(":"):
        path = f"{directory or '.'}/{name}"
        if not _why_not_executable(path):
            return path
    text = f'exec: "{name}": executable file not found in $PATH'
    raise StepError(START_FAILED, errno.ENOENT, detail=text)


def _why_not_executable(path: str) -> int:
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            return errno.EISDIR
    except OSError as error:
        return error.errno or errno.ENOENT
    return 0 if os.access(path, os.X_OK, effective_ids=True) else errno.EACCES


def _drop_privileges(process: ProcessPlan, user: users.User) -> None:
    """Bounding set, user, capabilities, no_new_privs: in the order in which each still may be set.

    Without no_new_privs a filter needs CAP_SYS_ADMIN, which stays until the filter is in force; so the
    filter need allow nothing of this but the last capset(2), and with it nothing but execve(2).
    """
    caps = process.capabilities
    capabilities.drop_bounding(caps.bounding)
    capabilities.keep_over_setuid()
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    if process.no_new_privs:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    for_filter = capabilities.SYS_ADMIN if process.seccomp and not process.no_new_privs else 0
    capabilities.apply(caps, for_filter)


def _execute(process: ProcessPlan, program: str) -> None:
    try:
        os.execve(program, process.args, process.environment)
    except OSError as error:
        number = error.errno or 0
        raise StepError(START_FAILED, number, detail=f"exec {program}: {errno_text(number)}") from None
