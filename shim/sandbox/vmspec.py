"""The VM of a pod as a VmSpec, without what only the moment knows (descriptors, links).

Owns: which settings make a VM: cold, and as a template. Pure. Must not know: processes, files' contents. Called by
builder.py, templatekey.py.
"""

from __future__ import annotations

from shim.config import Config
from shim.hypervisor.base import Share, VmSpec
from shim.sandbox.guestfiles import GuestFiles
from shim.sandbox.plan import HostLimits
from shim.share.tree import TAG

NOBODYS_UUID = "00000000-0000-4000-8000-000000000000"
EMULATED = 2  # vCPUs, of which one is for what a clone's agent rehearses (agent/rehearsal.py)


def of_size(
    config: Config, files: GuestFiles, accelerator: str, vcpus: int, memory_mib: int, max_vcpus: int, max_memory_mib: int
) -> VmSpec:
    """A VM of that size that boots `files`; it has no name yet."""
    return VmSpec(
        name="",
        uuid=NOBODYS_UUID,
        kernel=files.kernel,
        image=files.image or None,
        initrd=files.initrd or None,
        cmdline_extra=f"agent.log={config.agent.log_level} {config.guest.kernel_params}".strip(),
        vcpus=vcpus,
        memory_mib=memory_mib,
        max_vcpus=max_vcpus,
        max_memory_mib=max_memory_mib,
        accelerator=accelerator,
    )


def of_template(
    config: Config, files: GuestFiles, accelerator: str, vcpus: int, host: HostLimits, *, mounted: bool = False
) -> VmSpec:
    """The VM that is saved for pods with `vcpus`; whatever else a pod wants is plugged into its clone.

    With `mounted` the share is saved with it; else the guest only gets to know it. Its connection is the moment's.
    """
    hypervisor = config.hypervisor
    most = (hypervisor.max_vcpus or host.cpus, hypervisor.max_memory or host.memory_mib)
    spec = of_size(config, files, accelerator, vcpus, hypervisor.default_memory, *most)
    shared = share(config, -1) if config.share.shared_fs != "none" else None
    return spec._replace(name="hako-template", template=True, share=shared, mounted=mounted)


def share(config: Config, fd: int) -> Share:
    """The share's device, connected by `fd`."""
    return Share(fd, TAG, config.share.queue_size)


def vcpus(config: Config, accelerator: str, wanted: int, host: HostLimits) -> int:
    """vCPUs of a pod's VM whose plan has so many: where nothing is configured an emulated one has a second for rehearsals."""
    hypervisor = config.hypervisor
    if hypervisor.default_vcpus or accelerator != "tcg":
        return wanted
    return max(wanted, min(EMULATED, hypervisor.max_vcpus or host.cpus, host.cpus))


def default_vcpus(config: Config, accelerator: str, host: HostLimits) -> int:
    """vCPUs of a VM for a pod without limits."""
    return vcpus(config, accelerator, config.hypervisor.default_vcpus or 1, host)


def template_vcpus(config: Config, accelerator: str, wanted: int) -> int:
    """vCPUs of the template for a pod that wants so many: the emulator cannot plug any."""
    return wanted if accelerator == "tcg" else config.hypervisor.default_vcpus or 1


def no_template(config: Config) -> str:
    """Why VMs of this configuration cannot be saved and cloned; "" if they can."""
    hypervisor = config.hypervisor
    if not config.factory.template:
        return "[factory] template = false"
    if hypervisor.machine_type == "microvm":
        return "a microvm has no hot-plug"
    if not hypervisor.hotplug_ports:
        return "[hypervisor] hotplug_ports = 0"
    if hypervisor.debug_serial:
        return "[hypervisor] debug_serial = true"
    return ""
