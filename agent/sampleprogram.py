"""A static program that does what nearly every program does between its first instruction and its end, and says a line feed.

Owns: its ELF file (elf(5)), its machine code. Called by agent.warm for the throw-away container: the image has no program that
is as small, and an emulator has translated nothing yet of what a kernel does for its first one. So it has what real ones
have: text that is read from its file in several places, data that is written to, zeroed memory behind it, a heap, a mapping,
a file that it opens, and the calls by which a C library begins.
"""

from __future__ import annotations

import struct

NUMBERS = {
    "read": 0, "write": 1, "close": 3, "rt_sigaction": 13, "rt_sigprocmask": 14, "ioctl": 16, "mmap": 9, "mprotect": 10,
    "munmap": 11, "brk": 12, "uname": 63, "getcwd": 79, "getuid": 102, "geteuid": 107, "arch_prctl": 158,
    "set_tid_address": 218, "exit_group": 231, "openat": 257, "newfstatat": 262, "readlinkat": 267, "set_robust_list": 273,
    "prlimit64": 302, "getrandom": 318, "rseq": 334,
}  # fmt: skip
"""the system calls that it makes (x86_64)"""

PATH = "/program"
"""where it expects itself"""

_PAGE = 4096
_TEXT, _TEXT_SIZE = 0x400000, 64 * _PAGE
_DATA, _DATA_SIZE, _BSS_SIZE = 0x600000, 4 * _PAGE, 4 * _PAGE
_HEADERS = 64 + 3 * 56
_AT_FDCWD, _STDOUT, _O_RDONLY = -100, 1, 0
_STRINGS = (b"/\0", PATH.encode() + b"\0", b"/proc/self/exe\0", b"\n")
_ARCH_SET_FS, _TCGETS, _SIG_BLOCK, _SIGPIPE, _STACK_LIMIT, _ANY = 0x1002, 0x5401, 0, 13, 3, 2**64 - 1
_READ, _READ_WRITE, _PRIVATE_ANONYMOUS = 1, 3, 0x22
_LOAD, _STACK, _X, _W, _R = 1, 0x6474E551, 1, 2, 4

# mov REGISTER, imm64, of rdi, rsi, rdx, r10, r8 and r9: a call's arguments in their order
_ARGUMENTS = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
_RAX = b"\x48\xb8"
_SYSCALL = b"\x0f\x05"


def image() -> bytes:
    """The ELF file. It runs anywhere on x86_64 Linux, and ends with status 0 also where calls are refused."""
    ident = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _TEXT + _HEADERS, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    segments = _segment(_LOAD, _R | _X, 0, _TEXT, _TEXT_SIZE, _TEXT_SIZE)
    segments += _segment(_LOAD, _R | _W, _TEXT_SIZE, _DATA, _DATA_SIZE, _DATA_SIZE + _BSS_SIZE)
    segments += _segment(_STACK, _R | _W, 0, 0, 0, 0)
    return (ident + header + segments + _code()).ljust(_TEXT_SIZE + _DATA_SIZE, b"\0")


def _segment(kind: int, flags: int, offset: int, address: int, in_file: int, in_memory: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, in_file, in_memory, _PAGE)


def _code() -> bytes:
    """What it does, in its order; paths and the line feed lie behind the last call, in the text."""
    strings = b"".join(_STRINGS)
    root, program, exe, text = (_TEXT + _TEXT_SIZE - len(strings) + strings.index(each) for each in _STRINGS)
    kept, scratch = _DATA + 3 * _PAGE + 1024, _DATA + _PAGE  # the kernel looks into the first until the end
    body = b"".join((
        _call("brk", 0), _grow_heap(), _call("arch_prctl", _ARCH_SET_FS, kept), _call("set_tid_address", kept),
        _call("set_robust_list", kept + 64, 24), _call("rseq", kept + 128, 32, 0, 0x53053053),
        _call("prlimit64", 0, _STACK_LIMIT, 0, scratch), _call("readlinkat", _AT_FDCWD, exe, scratch, _PAGE),
        _call("getrandom", scratch, 8, 1), _call("uname", scratch), _call("getuid"), _call("geteuid"),
        _call("rt_sigaction", _SIGPIPE, 0, scratch, 8), _call("rt_sigprocmask", _SIG_BLOCK, 0, scratch, 8),
        _touch(_TEXT, _TEXT_SIZE, write=False), _touch(_DATA, _DATA_SIZE + _BSS_SIZE, write=True),
        _call("mprotect", _DATA, _PAGE, _READ),
        _call("mmap", 0, 4 * _PAGE, _READ_WRITE, _PRIVATE_ANONYMOUS, _ANY, 0), _use_mapping(),
        _call("newfstatat", _AT_FDCWD, root, scratch, 0), _call("getcwd", scratch, 256),
        # after once or twice one VM in three had met no such fault, after four times each of five had
        *[_read(program, scratch) + _touch(_TEXT, _TEXT_SIZE, write=False)] * 4,
        _call("ioctl", _STDOUT, _TCGETS, scratch), _call("write", _STDOUT, text, 1), _call("exit_group", 0),
    ))  # fmt: skip
    return body.ljust(_TEXT_SIZE - _HEADERS - len(strings), b"\xcc") + strings


def _read(path: int, buffer: int) -> bytes:
    """Its first page. virtio-fs forgets what a file had when it is opened: what is touched next is a fault that reads it.

    QEMU keeps a kernel's code for faults of user space by itself (HF_SS32: SS is null in them), so that it is wanted here.
    """
    opened = _call("openat", _AT_FDCWD, path, _O_RDONLY) + b"\x48\x89\xc7"  # mov rdi, rax
    return opened + _call("read", None, buffer, _PAGE) + _call("close", None)


def _call(name: str, *arguments: int | None) -> bytes:
    """A system call; None leaves an argument as it is: a call changes rax, rcx and r11 only."""
    pairs = zip(_ARGUMENTS, arguments, strict=False)
    loads = [move + struct.pack("<Q", value % 2**64) for move, value in pairs if value is not None]
    return b"".join(loads) + _RAX + struct.pack("<Q", NUMBERS[name]) + _SYSCALL


def _grow_heap() -> bytes:
    """brk(rax + 0x22000), and write to its last page: lea rdi, [rax + ...]; ...; cmp rax, rdi; jne over mov byte [rax - 1], 1."""
    return b"\x48\x8d\xb8" + struct.pack("<i", 0x22000) + _call("brk", None) + b"\x48\x39\xf8\x75\x04\xc6\x40\xff\x01"


def _touch(address: int, size: int, *, write: bool) -> bytes:
    """A byte of each page: mov al, [rsi] or mov byte [rsi], 1; add rsi, 4096; dec ecx; jnz to the first of them."""
    each = (b"\xc6\x06\x01" if write else b"\x8a\x06") + b"\x48\x81\xc6" + struct.pack("<I", _PAGE) + b"\xff\xc9"
    begin = b"\x48\xbe" + struct.pack("<Q", address) + b"\xb9" + struct.pack("<I", size // _PAGE)
    return begin + each + b"\x75" + struct.pack("<b", -len(each) - 2)


def _use_mapping() -> bytes:
    """test rax, rax; js over: mov byte [rax], 1; mov rdi, rax; munmap."""
    use = b"\xc6\x00\x01\x48\x89\xc7" + _call("munmap", None, 4 * _PAGE)
    return b"\x48\x85\xc0\x78" + struct.pack("<b", len(use)) + use
