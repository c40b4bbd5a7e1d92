"""The beginnings of files that a VM boots, or cannot: enough of each for whoever only looks at its head."""

from __future__ import annotations

X86_64 = 62


def elf(machine: int = X86_64) -> bytes:
    """An ELF file for this machine (elf(5), e_machine)."""
    return b"\x7fELF".ljust(18, b"\0") + machine.to_bytes(2, "little")


def arm64_image() -> bytes:
    """Linux's Image for arm64, which is no ELF file."""
    return b"MZ".ljust(0x38, b"\0") + b"ARM\x64"


def bzimage() -> bytes:
    """A compressed kernel for x86."""
    return bytes(0x202) + b"HdrS"


def erofs() -> bytes:
    """A file system image."""
    return bytes(1024) + b"\xe2\xe1\xf5\xe0"
