"""Which kernel and root file system boot: the configured ones, or what was installed or built last.

Owns: the places and their order. Must not know: how they are made (guest-kernel/) or booted (hypervisor/).
Called by builder.py; `hako check` asks it too. Host paths.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from shim import paths
from shim.config import GuestConfig
from shim.errors import HakoError, NotFound

EM_X86_64 = 62  # elf(5), as the names of the others
MACHINES = {3: "i386", 40: "arm", 183: "arm64", 243: "riscv", 21: "ppc64", 22: "s390x"}
EROFS_MAGIC = b"\xe2\xe1\xf5\xe0"  # at 1024 (Linux, Documentation/filesystems/erofs.rst)
HEAD = 2048  # bytes that are looked at; a bzImage has HdrS at 0x202 (Linux, Documentation/arch/x86/boot.rst)
KERNELS = ("vmlinux", "vmlinuz")
HINT = "run `make guest`, or set [guest] kernel and image in configuration.toml"


class GuestFiles(NamedTuple):
    """`image` is a root file system on a disk, `initrd` an initramfs; one of them is ""."""

    kernel: str
    image: str
    initrd: str


def find(config: GuestConfig) -> GuestFiles:
    """The files that boot. Raises NotFound if there are none, HakoError for files that cannot boot here."""
    kernel = config.kernel or _installed(KERNELS) or _newest("kernel", KERNELS)
    if not kernel:
        raise NotFound("there is no guest kernel", step="boot", hint=HINT)
    if config.initrd:
        return _existing(GuestFiles(kernel, "", config.initrd))
    if config.image:  # a kernel that was given with it may have its drivers built in, whatever it is called
        return _existing(GuestFiles(kernel, config.image, ""))
    image = _installed(("image.erofs",)) or _newest("image", ("image.erofs",))
    if image and not _is_stock(kernel):
        return _existing(GuestFiles(kernel, image, ""))
    initrd = _installed(("initrd.cpio",)) or _newest("image", ("initrd.cpio",))
    if not initrd:
        raise NotFound("there is no guest image", step="boot", hint=HINT)
    return _existing(GuestFiles(kernel, "", initrd))


def _is_stock(kernel: str) -> bool:
    """A distribution's bzImage has its drivers in modules, which only the initramfs loads."""
    return os.path.basename(kernel).startswith("vmlinuz")


def _existing(files: GuestFiles) -> GuestFiles:
    for path, wrong in ((files.kernel, _wrong_kernel), (files.image, _wrong_image), (files.initrd, lambda _head: "")):
        if not path:
            continue
        try:
            with open(path, "rb") as stream:
                reason = wrong(stream.read(HEAD))
        except FileNotFoundError:
            raise NotFound("there is no such file", step="boot", object=path, hint=HINT) from None
        except OSError as exc:
            raise HakoError(exc.strerror or str(exc), step="boot", object=path, hint=HINT) from exc
        if reason:
            raise HakoError(reason, step="boot", object=path, hint=HINT)
    return files


def _wrong_kernel(head: bytes) -> str:
    """Why a file that begins so cannot be booted, "" if it may be: QEMU would say less, after the VM was begun."""
    if head[:4] == b"\x7fELF":
        machine = int.from_bytes(head[18:20], "little")
        return "" if machine == EM_X86_64 else f"is a kernel for another architecture ({MACHINES.get(machine, machine)})"
    if head[0x38:0x3C] == b"ARM\x64":
        return "is a kernel for another architecture (arm64)"
    return "" if head[0x202:0x206] == b"HdrS" else "is not a kernel: neither an ELF vmlinux nor a bzImage"


def _wrong_image(head: bytes) -> str:
    return "" if head[1024:1028] == EROFS_MAGIC else "is not an erofs file system"


def _installed(names: tuple[str, ...]) -> str:
    """What `make install` put beside the programs."""
    directory = os.path.join(paths.install_root(), "guest")
    return next((path for path in (os.path.join(directory, name) for name in names) if os.path.exists(path)), "")


def _newest(kind: str, names: tuple[str, ...]) -> str:
    """The youngest one in the cache, where each build has a directory of its own."""
    root = paths.cache_dir(kind)
    try:
        directories = os.listdir(root)
    except OSError:
        return ""
    found = [os.path.join(root, directory, name) for directory in directories for name in names]
    return max((path for path in found if os.path.exists(path)), key=os.path.getmtime, default="")
