"""The committed form of the C declarations, and what syscalls.py refuses before the kernel is asked."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from agent.errors import StepError, step_error
from agent.linux import generate_ffi, syscalls
from agent.linux._ffi import ffi


def test_generated_module_is_what_the_declarations_give() -> None:
    """agent/linux/_ffi.py is committed; it must be exactly what generate_ffi.py makes."""
    assert Path(generate_ffi.TARGET).read_text() == generate_ffi.generate()


def test_nul_in_a_path_is_refused(tmp_path: Path) -> None:
    """C would take the NUL for the end and open another object."""
    with pytest.raises(OSError) as caught:
        syscalls.openat2(syscalls.AT_FDCWD, f"{tmp_path}\0/more", os.O_RDONLY)
    assert caught.value.errno == errno.EINVAL


def test_error_carries_errno_text_and_filename() -> None:
    """OSError(errno, text, filename), so that every message names the object."""
    with pytest.raises(FileNotFoundError) as caught:
        syscalls.openat2(syscalls.AT_FDCWD, "/no/such", os.O_RDONLY)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/no/such")
    assert "openat2" in str(caught.value)


def test_step_error_reads_like_a_sentence() -> None:
    """Engines search the text for Go's lower-case errno words."""
    error = step_error("mount", OSError(errno.EACCES, "mount: Permission denied", "/proc"))
    assert isinstance(error, StepError)
    assert str(error) == "mount: /proc: permission denied"


def test_openat2_stays_in_the_root(tmp_path: Path) -> None:
    """RESOLVE_IN_ROOT makes an absolute symlink end inside the directory."""
    (tmp_path / "inside").write_text("inside")
    (tmp_path / "link").symlink_to("/inside")
    root = os.open(tmp_path, os.O_PATH)
    fd = syscalls.openat2(root, "link", os.O_RDONLY, 0, syscalls.RESOLVE_IN_ROOT)
    assert os.read(fd, 100) == b"inside"
    os.close(fd)
    os.close(root)


def test_descriptors_are_closed_on_exec(tmp_path: Path) -> None:
    """No descriptor of the agent may reach a container."""
    fd = syscalls.openat2(syscalls.AT_FDCWD, str(tmp_path), os.O_PATH)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_filesystem_type_is_read_from_the_descriptor() -> None:
    """Whether a path lies on procfs is asked of the open file, not of its name."""
    fd = os.open("/proc/self", os.O_RDONLY)
    assert syscalls.filesystem_type(fd) == syscalls.PROC_SUPER_MAGIC
    os.close(fd)


def test_address_points_at_the_buffer() -> None:
    """Structures with pointers (bpf_attr) are packed from it."""
    buffer = bytearray(struct.pack("Q", 0x1122334455667788))
    pointer = ffi.cast("unsigned long *", syscalls.address(buffer))
    assert pointer[0] == 0x1122334455667788


def test_capget_agrees_with_proc() -> None:
    """The mask layout is the kernel's."""
    effective, permitted, _ = syscalls.capget()
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert effective == int(status["CapEff"], 16)
    assert permitted == int(status["CapPrm"], 16)
