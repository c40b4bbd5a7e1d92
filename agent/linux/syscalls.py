"""System calls that Python 3.11 lacks: one function per call, raising OSError(errno, text, filename).

Owns: the foreign function interface and the calls' numbers, constants and structure layouts, taken from the
kernel's uapi headers. Convenience on top of a call is beyond the scope of this module. Called by everything
in `agent` that is near the kernel; the declarations are in generate_ffi.py.

Paths are str, taken as given (relative to the working directory, or to `dirfd` where there is one) and
refused when they hold a NUL, which C would take for their end. Numbers that are the same on every machine
(424 and above) are used for calls for which glibc 2.36 has no function.
"""

from __future__ import annotations

import errno
import os
import struct

from agent.linux._ffi import ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000

# linux/sched.h
CLONE_NEWTIME: Final = 0x80
CLONE_NEWNS: Final = 0x20000
CLONE_NEWCGROUP: Final = 0x2000000
CLONE_NEWUTS: Final = 0x4000000
CLONE_NEWIPC: Final = 0x8000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

# linux/mount.h
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_REMOUNT: Final = 32
MS_MANDLOCK: Final = 64
MS_DIRSYNC: Final = 128
MS_NOSYMFOLLOW: Final = 256
MS_NOATIME: Final = 1024
MS_NODIRATIME: Final = 2048
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_SILENT: Final = 32768
MS_POSIXACL: Final = 1 << 16
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_I_VERSION: Final = 1 << 23
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25
MNT_DETACH: Final = 2
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR__ATIME: Final = 0x70
MOUNT_ATTR_RELATIME: Final = 0x0
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000

# linux/openat2.h
RESOLVE_NO_MAGICLINKS: Final = 0x2
RESOLVE_NO_SYMLINKS: Final = 0x4
RESOLVE_BENEATH: Final = 0x8
RESOLVE_IN_ROOT: Final = 0x10

# linux/magic.h
PROC_SUPER_MAGIC: Final = 0x9FA0
SYSFS_MAGIC: Final = 0x62656572
DEVPTS_SUPER_MAGIC: Final = 0x1CD1

# linux/prctl.h
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_SET_NAME: Final = 15
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

CLOSE_RANGE_CLOEXEC: Final = 4
RLIM_INFINITY: Final = (1 << 64) - 1
IOPRIO_WHO_PROCESS: Final = 1
KEYCTL_JOIN_SESSION_KEYRING: Final = 1
KEYCTL_SETPERM: Final = 5
REBOOT_POWER_OFF: Final = 0x4321FEDC
REBOOT_RESTART: Final = 0x1234567

# Numbers of calls: those from 424 on are common to all machines, the older ones differ (asm-generic for the
# rest).
_SYS_PIDFD_SEND_SIGNAL = 424
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_CLOSE_RANGE = 436
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_X86_64 = {
    "init_module": 175, "delete_module": 176, "set_mempolicy": 238, "keyctl": 250, "ioprio_set": 251,
    "finit_module": 313, "sched_setattr": 314, "seccomp": 317, "bpf": 321,
}  # fmt: skip
_GENERIC = {
    "ioprio_set": 30, "init_module": 105, "delete_module": 106, "keyctl": 219, "set_mempolicy": 237,
    "finit_module": 273, "sched_setattr": 274, "seccomp": 277, "bpf": 280,
}  # fmt: skip
_NUMBER = _X86_64 if os.uname().machine == "x86_64" else _GENERIC

libc: Any = ffi.dlopen(None)  # type: ignore[no-untyped-call, unused-ignore]
_direct = ffi.addressof(libc, "syscall")
_path = ffi.cast("direct_path", _direct)
_path_data = ffi.cast("direct_path_data", _direct)
_path_path = ffi.cast("direct_path_path", _direct)
_path_flags_data = ffi.cast("direct_path_flags_data", _direct)
_value_data = ffi.cast("direct_value_data", _direct)
_value_value_data = ffi.cast("direct_value_value_data", _direct)
_data_size_text = ffi.cast("direct_data_size_text", _direct)
_value_text_value = ffi.cast("direct_value_text_value", _direct)


def _c(text: str) -> bytes:
    """`text` for C; a NUL in it would silently name another object."""
    if "\0" in text:
        raise OSError(errno.EINVAL, "NUL in a string for the kernel", text)
    return text.encode("utf-8", "surrogateescape")


def _error(call: str, filename: str | None = None) -> OSError:
    number = ffi.errno
    return OSError(number, f"{call}: {os.strerror(number)}", filename)


def address(buffer: bytes | bytearray | memoryview) -> int:
    """Where `buffer` lies in memory, for structures that hold pointers; the caller keeps it alive."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


# --- namespaces and processes -------------------------------------------------------------------------------


def unshare(flags: int) -> None:
    """Move to new namespaces of the kinds in `flags` (CLONE_NEW*); of NEWPID and NEWTIME only children do."""
    if libc.unshare(flags) < 0:
        raise _error("unshare")


def setns(fd: int, nstype: int) -> None:
    """Join the namespace that `fd` refers to; a NEWPID takes effect for children."""
    if libc.setns(fd, nstype) < 0:
        raise _error("setns")


def prctl(option: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    """Operations on the calling process."""
    result: int = libc.prctl(option, a, b, c, d)
    if result < 0:
        raise _error("prctl")
    return result


def pidfd_send_signal(pidfd: int, signum: int) -> None:
    """Send a signal to the process behind `pidfd`; ESRCH when it is reaped."""
    if libc.syscall(_SYS_PIDFD_SEND_SIGNAL, pidfd, signum, 0, 0, 0, 0) < 0:
        raise _error("pidfd_send_signal")


def close_range(first: int, last: int, flags: int = 0) -> None:
    """Close the descriptors `first` to `last`, or only mark them (CLOSE_RANGE_CLOEXEC)."""
    if libc.syscall(_SYS_CLOSE_RANGE, first, last, flags, 0, 0, 0) < 0:
        raise _error("close_range")


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's capability sets, given as bit masks."""
    sets = (effective, permitted, inheritable)
    data = struct.pack("6I", *[caps & 0xFFFFFFFF for caps in sets], *[caps >> 32 for caps in sets])
    if libc.capset(struct.pack("Ii", 0x20080522, 0), data) < 0:  # _LINUX_CAPABILITY_VERSION_3
        raise _error("capset")


def capget() -> tuple[int, int, int]:
    """The calling thread's (effective, permitted, inheritable) capability sets as bit masks."""
    data = ffi.new("char[24]")
    if libc.capget(struct.pack("Ii", 0x20080522, 0), data) < 0:
        raise _error("capget")
    sets = struct.unpack("6I", ffi.buffer(data))
    return sets[0] | sets[3] << 32, sets[1] | sets[4] << 32, sets[2] | sets[5] << 32


def prlimit(pid: int, resource: int, soft: int, hard: int) -> None:
    """Set the resource limit `resource` (RLIMIT_* number) of a process; RLIM_INFINITY means none."""
    if libc.prlimit64(pid, resource, struct.pack("QQ", soft, hard), ffi.NULL) < 0:
        raise _error("prlimit")


def personality(persona: int) -> None:
    """Set the execution domain and its flags."""
    if libc.personality(persona) < 0:
        raise _error("personality")


def sched_setattr(
    pid: int, policy: int, flags: int, nice: int, priority: int, times: tuple[int, int, int]
) -> None:
    """Set policy and parameters of scheduling; `times` is (runtime, deadline, period) in nanoseconds."""
    attr = struct.pack("IIQiIQQQ", 48, policy, flags, nice, priority, *times)
    if _value_data(_NUMBER["sched_setattr"], pid, attr, 0) < 0:
        raise _error("sched_setattr")


def ioprio_set(pid: int, io_class: int, level: int) -> None:
    """Set the I/O scheduling class and level of a process (0: the calling one)."""
    if libc.syscall(_NUMBER["ioprio_set"], IOPRIO_WHO_PROCESS, pid, io_class << 13 | level, 0, 0, 0) < 0:
        raise _error("ioprio_set")


def set_mempolicy(mode: int, nodes: int, node_bits: int) -> None:
    """Set the calling thread's NUMA policy: `mode` with its flags, `nodes` a bit mask of `node_bits` bits."""
    mask = nodes.to_bytes((node_bits + 63) // 64 * 8, "little")
    # The kernel reads one bit less than maxnode says.
    if _value_data(_NUMBER["set_mempolicy"], mode, mask, node_bits + 1) < 0:
        raise _error("set_mempolicy")


def keyctl_join_session(name: str) -> int:
    """Join a new session keyring called `name`; its serial number."""
    serial: int = _value_text_value(_NUMBER["keyctl"], KEYCTL_JOIN_SESSION_KEYRING, _c(name), 0)
    if serial < 0:
        raise _error("keyctl", name)
    return serial


def keyctl_setperm(serial: int, permissions: int) -> None:
    """Set a key's permission mask."""
    if libc.syscall(_NUMBER["keyctl"], KEYCTL_SETPERM, serial, permissions, 0, 0, 0) < 0:
        raise _error("keyctl")


def seccomp(operation: int, flags: int, program: bytes) -> int:
    """seccomp(2) with `program`, an array of struct sock_filter, as struct sock_fprog."""
    fprog = struct.pack("HxxxxxxQ", len(program) // 8, address(program))
    result: int = _value_value_data(_NUMBER["seccomp"], operation, flags, fprog)
    if result < 0:
        raise _error("seccomp")
    return result


def bpf(command: int, attr: bytes | bytearray) -> int:
    """bpf(2); `attr` is union bpf_attr as far as it is used. The kernel may write into a bytearray."""
    result: int = _value_data(_NUMBER["bpf"], command, ffi.from_buffer("char[]", attr), len(attr))
    if result < 0:
        raise _error("bpf")
    return result


# --- files and mounts ---------------------------------------------------------------------------------------


def openat2(dirfd: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open with rules for the path's resolution (RESOLVE_*); a descriptor that is closed on exec."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    fd: int = _path_data(_SYS_OPENAT2, dirfd, _c(path), how, 24)
    if fd < 0:
        raise _error("openat2", path)
    return fd


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """mount(2). OSError names `target`."""
    null = ffi.NULL
    result = libc.mount(
        null if source is None else _c(source),
        _c(target),
        null if fstype is None else _c(fstype),
        flags,
        _c(data) if data else null,
    )
    if result < 0:
        raise _error("mount", target)


def umount2(target: str, flags: int = 0) -> None:
    """Unmount what is mounted on top at `target`."""
    if libc.umount2(_c(target), flags) < 0:
        raise _error("umount", target)


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root of the mount namespace and put the old one at `put_old`."""
    if libc.pivot_root(_c(new_root), _c(put_old)) < 0:
        raise _error("pivot_root", new_root)


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """A descriptor of the mount at `path`; OPEN_TREE_CLONE: of a detached copy (AT_RECURSIVE: and below)."""
    fd: int = _path(_SYS_OPEN_TREE, dirfd, _c(path), flags | OPEN_TREE_CLOEXEC)
    if fd < 0:
        raise _error("open_tree", path)
    return fd


def move_mount(from_fd: int, to_fd: int) -> None:
    """Attach the (detached) mount `from_fd` on top of the file or directory that `to_fd` is open at."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    if _path_path(_SYS_MOVE_MOUNT, from_fd, b"", to_fd, b"", flags) < 0:
        raise _error("move_mount")


def mount_setattr(
    fd: int, flags: int, attr_set: int = 0, attr_clear: int = 0, propagation: int = 0, userns: int = 0
) -> None:
    """Change the mount that `fd` is the root of, with AT_RECURSIVE in `flags` also all below it.

    `attr_set` and `attr_clear` are MOUNT_ATTR_*; `propagation` is one of MS_PRIVATE, MS_SLAVE, MS_SHARED,
    MS_UNBINDABLE; `userns` is the descriptor of the user namespace for MOUNT_ATTR_IDMAP.
    """
    attr = struct.pack("QQQQ", attr_set, attr_clear, propagation, userns)
    if _path_flags_data(_SYS_MOUNT_SETATTR, fd, b"", flags | AT_EMPTY_PATH, attr, 32) < 0:
        raise _error("mount_setattr")


def filesystem_type(fd: int) -> int:
    """The magic number of the file system that `fd` lies on (statfs.f_type)."""
    buffer = ffi.new("char[120]")
    if libc.fstatfs64(fd, buffer) < 0:
        raise _error("fstatfs")
    kind: int = struct.unpack_from("q", ffi.buffer(buffer))[0]
    return kind


# --- the machine --------------------------------------------------------------------------------------------


def sethostname(name: str) -> None:
    """Set the host name of the UTS namespace."""
    data = _c(name)
    if libc.sethostname(data, len(data)) < 0:
        raise _error("sethostname", name)


def setdomainname(name: str) -> None:
    """Set the NIS domain name of the UTS namespace."""
    data = _c(name)
    if libc.setdomainname(data, len(data)) < 0:
        raise _error("setdomainname", name)


def settimeofday(seconds: int, microseconds: int) -> None:
    """Set the wall clock."""
    if libc.settimeofday(struct.pack("qq", seconds, microseconds), ffi.NULL) < 0:
        raise _error("settimeofday")


def init_module(image: bytes, parameters: str) -> None:
    """Load a kernel module from memory."""
    if _data_size_text(_NUMBER["init_module"], image, len(image), _c(parameters)) < 0:
        raise _error("init_module")


def finit_module(fd: int, parameters: str, flags: int = 0) -> None:
    """Load a kernel module from a file."""
    if _value_text_value(_NUMBER["finit_module"], fd, _c(parameters), flags) < 0:
        raise _error("finit_module")


def swapon(path: str, flags: int = 0) -> None:
    """Swap to the file or device at `path`."""
    if libc.swapon(_c(path), flags) < 0:
        raise _error("swapon", path)


def reboot(command: int) -> None:
    """Restart or power off the machine (REBOOT_*); returns only by raising, or inside a pid namespace."""
    if libc.reboot(command) < 0:
        raise _error("reboot")


# --- watching directories (host) ----------------------------------------------------------------------------

IN_CREATE: Final = 0x100
_SYS_INOTIFY_INIT1, _SYS_INOTIFY_ADD_WATCH = (294, 254) if os.uname().machine == "x86_64" else (26, 27)


def inotify_init() -> int:
    """A descriptor, closed on exec, that becomes readable when something happens to what it watches."""
    fd: int = libc.syscall(_SYS_INOTIFY_INIT1, os.O_CLOEXEC, 0, 0, 0, 0, 0)
    if fd < 0:
        raise _error("inotify_init1")
    return fd


def inotify_add_watch(fd: int, path: str, mask: int) -> None:
    """Watch `path` for the events in `mask` (IN_*)."""
    if _path(_SYS_INOTIFY_ADD_WATCH, fd, _c(path), mask) < 0:
        raise _error("inotify_add_watch", path)
