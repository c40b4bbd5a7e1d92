"""What this host can do for a VM: does KVM boot our kernel, who may use it, which QEMU is there.

Owns: the probe and its cached answer. Must not know: pods. Called by sandbox/builder.py before each launch
(1 ms once the answer is known) and by `hako check`.

A /dev/kvm that can be opened proves nothing: some nested hosts take a VM and never get through a stock
kernel, or abort QEMU over a model-specific register. So the probe boots the guest's kernel and image with
the CPU model that will be used. A crash, silence and an end before the hello all mean TCG, which works
everywhere.
"""

from __future__ import annotations

import os
import stat
import time
from typing import Final, NamedTuple

from shim import answers, process
from shim.config import HypervisorConfig
from shim.errors import BootError, HakoError
from shim.hypervisor.base import VmSpec
from shim.process import Confinement

KVM: Final = "/dev/kvm"
PROBE_DEADLINE: Final = 3.0  # seconds; with KVM the kernel is at its hello in less than one, nested in less than two
PROBE_MEMORY_MIB: Final = 128


class GuestFiles(NamedTuple):
    """What boots; host paths, "" or None for what is not used."""

    kernel: str
    image: str | None = None
    initrd: str | None = None


class Accelerator(NamedTuple):
    """How the guest's CPU runs: "kvm" or "tcg", why, and whether that was known before."""

    name: str
    reason: str
    cached: bool


def probe_accelerator(config: HypervisorConfig, files: GuestFiles, confine: Confinement) -> Accelerator:
    """The accelerator for QEMU run in `confine` (its cgroups are not joined, its user is what matters).

    At most 3 seconds the first time. Never raises: what goes wrong is the reason for TCG.
    """
    if config.accelerator != "auto":
        return Accelerator(config.accelerator, "configured", cached=True)
    refusal = kvm_refusal(confine)
    if refusal:
        return Accelerator("tcg", refusal, cached=True)
    user = confine._replace(cgroup_dirs=(), netns=None)
    inputs = _inputs(config, files, user)
    answer, known = answers.cached("kvm", inputs, lambda: _boot(config, files, user))
    name, _, reason = answer.partition(" ")
    if name == "late":  # the machine may just have been busy: good until the next boot of the host
        name, since, reason = ("tcg", *reason.partition(" ")[::2])
        if known and since != answers.boot():
            answers.forget("kvm", inputs)
            return probe_accelerator(config, files, confine)
    return Accelerator(name, reason, cached=known)


def kvm_groups() -> tuple[int, ...]:
    """Groups that QEMU's user must be in to open /dev/kvm; empty if there are none."""
    try:
        status = os.stat(KVM)
    except OSError:
        return ()
    return (status.st_gid,) if status.st_mode & 0o060 == 0o060 and status.st_gid else ()


def kvm_refusal(confine: Confinement, device: str = KVM) -> str:
    """Why a process in `confine` cannot use KVM at all; "" if it may be able to."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        status = os.stat(device)
    except OSError as exc:
        return f"{device}: {exc.strerror}"
    if _may_use(status, confine):
        return ""
    mode = stat.filemode(status.st_mode)
    return f"{device} is not for user {confine.uid} ({mode}): chgrp kvm {device}; chmod 660 {device}"


def _may_use(status: os.stat_result, confine: Confinement) -> bool:
    uid, mode = confine.uid, status.st_mode
    if uid is None or uid == 0:
        return True
    groups = {confine.gid if confine.gid is not None else uid, *confine.groups}
    wanted = 0o600 if status.st_uid == uid else 0o060 if status.st_gid in groups else 0o006
    return mode & wanted == wanted


def _inputs(config: HypervisorConfig, files: GuestFiles, confine: Confinement) -> list[str]:
    """Everything that the answer depends on."""
    return [
        answers.identity(config.path),
        *(answers.identity(path) for path in files if path),
        config.machine_type,
        config.cpu_model,
        repr((confine.uid, confine.gid, confine.groups)),
        os.uname().release,
        os.uname().version,
        cpu_model(),
    ]


def cpu_model(cpuinfo: str = "/proc/cpuinfo") -> str:
    """Model and microcode of the first CPU."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags")
    found = []
    with open(cpuinfo, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            name, _, value = line.partition(":")
            if not name.strip():
                break
            if name.strip() in wanted:
                found.append(value.strip())
    return "|".join(found)


def _boot(config: HypervisorConfig, files: GuestFiles, confine: Confinement) -> str:
    """Boot with KVM: "kvm reason", "tcg reason", or "late BOOT-ID reason"."""
    import uuid

    from shim.hypervisor.qemu.driver import Qemu

    spec = VmSpec(
        name="hako-probe",
        uuid=str(uuid.uuid4()),
        kernel=files.kernel,
        image=files.image,
        initrd=files.initrd,
        memory_mib=PROBE_MEMORY_MIB,
        confine=confine,
        accelerator="kvm",
    )
    begin = time.monotonic()
    try:
        vm = Qemu(config).launch(spec)
    except HakoError as exc:
        return f"tcg {exc}"
    try:
        vm.wait_ready(PROBE_DEADLINE, explain=False)
    except BootError as exc:
        return f"tcg with KVM {exc}" if vm.exited() else f"late {answers.boot()} with KVM {exc}"
    finally:
        vm.stop(0)
    return f"kvm booted in {time.monotonic() - begin:.2f} s"


def version(config: HypervisorConfig) -> str:
    """The VMM's version as it says it, such as "7.2.22". Raises CommandFailed if it does not run."""

    def ask() -> str:
        said = process.run([config.path, "--version"], 10.0).decode("utf-8", "replace")
        return said.partition("version ")[2].split()[0] if "version " in said else said.strip()

    return answers.cached("version", [answers.identity(config.path)], ask)[0]


def version_numbers(version: str) -> tuple[int, ...]:
    """ "10.0.2" as numbers, which compare as versions do; what is none ends them."""
    found: list[int] = []
    for part in version.split("."):
        if not (part.isascii() and part.isdigit()):
            break
        found.append(int(part))
    return tuple(found)
