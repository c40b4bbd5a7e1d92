"""When a saved VM fits: a hash of everything that it depends on.

Owns: the inputs and their words. Must not know: where templates are kept (template.py), how they are made
(templatebuild.py). Called by both and by builder.py, at every start: 1 ms once the files' hashes are known.

The inputs: the contents of kernel, image and initramfs; QEMU's binary and version; QEMU's whole command line
but for names and descriptors, which has the guest's command line, the machine, vCPUs, memory, accelerator and CPU
model in it, without KVM the speed of the host's counter; with KVM also the host's CPU and kernel, which decide what the
guest's CPU can do; with a share that is saved mounted virtiofsd's program and options.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from shim import answers
from shim.config import Config
from shim.hypervisor import host
from shim.hypervisor.base import Hypervisor, VmSpec
from shim.share import virtiofsd

FORMAT = "2"  # of the saved files, and of what the agent and the host expect of each other around a restore
KEY_DIGITS = 24
BLOCK = 1 << 20


class Identity(NamedTuple):
    """What a template is called, and why: the inputs by name."""

    key: str
    inputs: dict[str, str]


def identify(config: Config, spec: VmSpec, hypervisor: Hypervisor) -> Identity:
    """Of the template with this spec. Raises OSError for a file that cannot be read, CommandFailed for QEMU or virtiofsd."""
    import hashlib

    inputs = {
        "format": FORMAT,
        "vmm": answers.identity(config.hypervisor.path),
        "version": host.version(config.hypervisor),
        "machine": "\n".join(hypervisor.fingerprint(spec)),
    }
    for name, path in (("kernel", spec.kernel), ("image", spec.image), ("initrd", spec.initrd)):
        if path:
            inputs[name] = content(path)
    if spec.mounted:
        inputs["virtiofsd"] = virtiofsd.fingerprint(virtiofsd.find(config.share.daemon), config.share)
    if spec.accelerator == "kvm":
        inputs["host"] = f"{host.cpu_model()} {os.uname().release} {os.uname().version}"
    text = "\0".join(f"{name}={inputs[name]}" for name in sorted(inputs))
    return Identity(hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:KEY_DIGITS], inputs)


def files(config: Config, spec: VmSpec) -> dict[str, str]:
    """The files that a template is made of (host paths), each with what the key has of it; for `is_same`."""
    programs = [config.hypervisor.path]
    if spec.mounted:
        programs.append(virtiofsd.find(config.share.daemon).path)
    guest = [path for path in (spec.kernel, spec.image, spec.initrd) if path]
    return {path: answers.identity(path) for path in programs} | {path: content(path) for path in guest}


def is_same(path: str, made_of: str) -> bool:
    """Whether that file is what a template was made of; one that was built again is, if it came out the same."""
    try:
        return made_of in (answers.identity(path), content(path))
    except OSError:
        return False


def content(path: str) -> str:
    """SHA-256 of a file, read once for each state of it (inode, size, times of change). Raises OSError."""
    status = os.stat(path)
    inputs = [answers.identity(path), str(status.st_ino), str(status.st_ctime_ns)]
    return answers.cached("sha256", inputs, lambda: _digest(path))[0]


def _digest(path: str) -> str:
    import hashlib

    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
