"""Duties of PID 1 in the guest, before anything else runs, and at the end.

Owns: the guest's own mounts, its first root, kernel modules, the cgroup tree's top, loopback, limits, power
off. Knows nothing of sandboxes. Called by agent/__main__.py when it is PID 1: setup() first, poweroff()
last.

The image's root is read-only erofs (our kernel) or an initramfs (stock kernel); everything writable is
tmpfs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys

from agent.errors import step_error
from agent.linux import cgroupfs, netlink, syscalls
from agent.rootfs import RAMFS_MAGIC, TMPFS_MAGIC

CGROUP_ROOT = "/sys/fs/cgroup"
AGENT_CGROUP = CGROUP_ROOT + "/hako-agent"
AGENT_MEMORY = 32 << 20
"""bytes that are reclaimed last: containers that fill the guest's memory must not make the agent crawl"""
MODULE_LIST = "/etc/hako/modules"
HOSTNAME = "hako"
OPEN_FILES = 1 << 20
"""what a container without limits of its own inherits, as from containerd's or Kata's unit; fs.nr_open's
default
"""
_RLIMIT_NPROC, _RLIMIT_NOFILE = 6, 7
_SYNC_SECONDS = 3.0
_SIGKILL = 9  # module signal would load enum, 50 ms in an emulated guest

_PLAIN = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_DATA = syscalls.MS_NOSUID | syscalls.MS_NODEV

# type, mount point, flags, data. A container's /dev/shm, mqueue and pts are its own; these are the agent's.
FIRST_MOUNTS = (
    ("proc", "/proc", _PLAIN, ""),
    ("sysfs", "/sys", _PLAIN, ""),
    ("devtmpfs", "/dev", syscalls.MS_NOSUID, "mode=0755"),
)
LATER_MOUNTS = (
    ("devpts", "/dev/pts", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", _DATA, "mode=1777"),
    ("mqueue", "/dev/mqueue", _PLAIN, ""),
    ("tmpfs", "/run", _DATA, "mode=0755"),
    ("tmpfs", "/tmp", _DATA, "mode=1777"),
)
DEVICE_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
)
# nsdelegate: a container with its own cgroup namespace and a writable cgroup mount still cannot change its
# limits. favordynmods (6.0): a process joins its cgroup without waiting for RCU, 1 ms instead of 5 to 30
# measured in an emulated guest, for every container and every exec.
_CGROUP_OPTIONS = (
    "nsdelegate,memory_recursiveprot,favordynmods",
    "nsdelegate,memory_recursiveprot",
    "nsdelegate",
    "",
)


def setup() -> None:
    """Make a bare kernel a place where containers can run. Raises StepError; then nothing can."""
    leave_first_root()
    for entry in FIRST_MOUNTS:
        mount(*entry)
    failures = load_modules(MODULE_LIST)
    open_standard_streams()
    for failure in failures:
        print(f"hako-agent: {failure}", file=sys.stderr)
    for entry in LATER_MOUNTS:
        mount(*entry)
    link_devices()
    setup_cgroups()
    setup_limits()
    setup_names()
    raise_loopback()


# --- mounts -----------------------------------------------------------------------------------------------


def leave_first_root() -> None:
    """Put a mount of the same tree over the initramfs root, and move into it.

    pivot_root(2) refuses to work from the kernel's first root ("rootfs", on which an initramfs runs)
    because that has no parent mount; with this mount on top, containers can pivot. Does nothing on any
    other root.
    """
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    kind = syscalls.filesystem_type(fd)
    os.close(fd)
    if kind not in (RAMFS_MAGIC, TMPFS_MAGIC):
        return
    try:
        os.makedirs("/run/root", exist_ok=True)
        syscalls.mount("/", "/run/root", None, syscalls.MS_BIND | syscalls.MS_REC)
        os.chdir("/run/root")
        syscalls.mount(".", "/", None, syscalls.MS_MOVE)
        os.chroot(".")
        os.chdir("/")
    except OSError as error:
        raise step_error("leave the first root", error) from error


def mount(fstype: str, point: str, flags: int, data: str) -> None:
    """Mount a kernel file system; fine where the kernel or an earlier init has done it. Raises StepError.
    """
    try:
        if not os.path.isdir(point):
            os.mkdir(point, 0o755)
        syscalls.mount(fstype, point, fstype, flags, data)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise step_error(f"mount {fstype}", error) from error


def link_devices() -> None:
    """The symbolic links in /dev that programs expect."""
    for target, path in DEVICE_LINKS:
        try:
            os.symlink(target, path)
        except FileExistsError:
            pass
        except OSError as error:
            raise step_error("link device", error) from error


def open_standard_streams() -> None:
    """Give descriptors 0, 1 and 2 the console where the kernel had none to give.

    A console that comes from a module does not exist when the kernel starts init, which then has none of
    the three open: the next file opened would become "standard output".
    """
    missing = [fd for fd in (0, 1, 2) if not _is_open(fd)]
    if not missing:
        return
    try:
        console = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        console = os.open("/dev/null", os.O_RDWR)
    for fd in missing:
        if fd != console:
            os.dup2(console, fd)
    fcntl.fcntl(console, fcntl.F_SETFD, 0)  # a console that took one of the three numbers itself
    # Python makes None of a stream whose descriptor was closed at its start.
    if sys.stdout is None:
        sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# --- modules ----------------------------------------------------------------------------------------------


def module_lines(text: str) -> list[tuple[str, str]]:
    """(file, parameters) of each line of the module list; # starts a comment."""
    found = []
    for line in text.splitlines():
        path, _, parameters = line.partition("#")[0].strip().partition(" ")
        if path:
            found.append((path, parameters.strip()))
    return found


def load_modules(listing: str) -> list[str]:
    """Load the kernel modules of the list in its order; what went wrong, one line each.

    Only a stock kernel's image has the list. What depends on a missing module fails later by itself; the
    console, on which the failures are to be shown, may come from one of the modules.
    """
    try:
        with open(listing, encoding="utf-8") as file:
            lines = module_lines(file.read())
    except FileNotFoundError:
        return []
    failures = []
    for path, parameters in lines:
        try:
            load_module(path, parameters)
        except OSError as error:
            failures.append(f"module {path}: {error.strerror}")
    return failures


def load_module(path: str, parameters: str) -> None:
    """Load one module; fine when it is there already. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.finit_module(fd, parameters)
    except FileExistsError:
        pass
    finally:
        os.close(fd)


# --- the rest of the machine ------------------------------------------------------------------------------


def setup_cgroups() -> None:
    """Mount cgroup v2, move the agent to a leaf, pass every controller to the children of the root.

    The agent's own cgroup keeps its usage apart and itself out of what containers are limited by.
    """
    for options in _CGROUP_OPTIONS:
        try:
            syscalls.mount("cgroup2", CGROUP_ROOT, "cgroup2", _PLAIN, options)
            break
        except OSError as error:
            if error.errno == errno.EBUSY:
                break
            if error.errno != errno.EINVAL or not options:
                raise step_error("mount cgroup2", error) from error
    try:
        os.makedirs(AGENT_CGROUP, exist_ok=True)
        cgroupfs.write(AGENT_CGROUP, "cgroup.procs", "0")
        cgroupfs.enable_controllers(CGROUP_ROOT)
        if os.path.exists(AGENT_CGROUP + "/memory.low"):
            cgroupfs.write(AGENT_CGROUP, "memory.low", str(AGENT_MEMORY))
    except OSError as error:
        raise step_error("set up cgroups", error) from error


def setup_limits() -> None:
    """Many open files and processes; a container's own limits and cgroup come on top."""
    try:
        syscalls.prlimit(0, _RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
        syscalls.prlimit(0, _RLIMIT_NPROC, syscalls.RLIM_INFINITY, syscalls.RLIM_INFINITY)
    except OSError as error:
        raise step_error("raise limits", error) from error


def setup_names() -> None:
    """A host name until the sandbox brings its own; a file mode mask for what the agent makes."""
    os.umask(0o022)
    try:
        syscalls.sethostname(HOSTNAME)
    except OSError as error:
        raise step_error("set host name", error) from error


def raise_loopback() -> None:
    """lo is down in a new kernel; the kernel adds its addresses when it comes up."""
    try:
        with netlink.Netlink() as kernel:
            kernel.set_link(1, up=True)
    except OSError as error:
        raise step_error("raise the loopback interface", error) from error


# --- the end ----------------------------------------------------------------------------------------------


def poweroff() -> None:
    """Kill every process, write what is unwritten within a deadline, switch the machine off. Does not
    return.

    Without ACPI the kernel can only halt, which would leave the VMM running; there it resets, and the VMM
    (started with -no-reboot) exits.
    """
    try:
        os.kill(-1, _SIGKILL)
    except ProcessLookupError:
        pass
    sync(_SYNC_SECONDS)
    acpi = os.path.isdir("/sys/firmware/acpi/tables")
    syscalls.reboot(syscalls.REBOOT_POWER_OFF if acpi else syscalls.REBOOT_RESTART)


def sync(seconds: float) -> None:
    """Write unwritten data, but do not wait longer: a share whose host process died would block for ever.
    """
    pid = os.fork()
    if pid == 0:
        os.sync()
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll(seconds * 1000)
    os.close(pidfd)
