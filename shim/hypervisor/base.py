"""What a VM is made of (`VmSpec`), what can be done with a running one (`Vm`), and who makes it
(`Hypervisor`).

Owns: the vocabulary between sandbox/builder.py, which fills a VmSpec, and the drivers, which know a VMM.
Must not know: any VMM, and what the sockets and taps lead to. Before and after boot are different types, so
no method asks "is it running?".

Descriptors in a VmSpec stay the caller's: a driver hands them to the VMM at launch, after which they may be
closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from agent.api import LEVEL
from shim.process import Confinement

READY: Final = "hako-agent: ready"
WARM: Final = "hako-agent: template"
HELLO: Final = f"{READY} {LEVEL}"  # the line on the guest's console that says: the agent listens
TEMPLATE: Final = f"{WARM} {LEVEL}"  # and: the guest is warm and may be saved


class Nic(NamedTuple):
    """A network card on a tap.

    `fd` is the tap's, `vhost_fd` one of /dev/vhost-net (-1: the VMM moves the packets).
    """

    fd: int
    mac: str
    mtu: int = 1500
    vhost_fd: int = -1


class Disk(NamedTuple):
    """A raw disk from a host file or block device.

    `id` names it in the VMM and is its serial number in the guest.
    """

    path: str
    read_only: bool
    id: str


class Plugged(NamedTuple):
    """A device that came to a running VM.

    `id` is for `unplug`; `pci_path` is where the guest finds it: "SLOT.FUNCTION/SLOT" in hexadecimal, from the root bus.
    """

    id: str
    pci_path: str


class Share(NamedTuple):
    """A virtio-fs file system.

    `fd` is connected to virtiofsd's vhost-user socket; `tag` is what the guest mounts.
    """

    fd: int
    tag: str
    queue_size: int = 1024


class Vsock(NamedTuple):
    """The guest's vsock device: `cid` > 0: `fd` is of /dev/vhost-vsock; `cid` 0: connected to a vhost-user
    daemon.
    """

    fd: int
    cid: int = 0


class VmSpec(NamedTuple):
    """A VM to be booted. Host paths; memory in MiB; `max_*` 0 means that it will not grow.

    `kernel` is an uncompressed vmlinux (PVH) or a bzImage. The root file system is `image` (erofs,
    read-only), or `initrd`. `cmdline_extra` is appended to the kernel's command line. With `serial` there
    is a serial port, and early boot and panics are seen. `accelerator` is "kvm" or "tcg". `memory_fd` is a
    file of exactly `memory_mib` that the VMM maps as the guest's RAM, -1: it makes its own. With `template`
    the guest is one that is saved, or was: it warms up, says TEMPLATE, and says HELLO when it has its vsock device
    again, which it has when it boots, and which is not saved. Neither is its share, unless it is `mounted`: then the
    guest mounts it by itself.
    """

    name: str
    uuid: str
    kernel: str
    image: str | None = None
    initrd: str | None = None
    cmdline_extra: str = ""
    vcpus: int = 1
    memory_mib: int = 256
    max_vcpus: int = 0
    max_memory_mib: int = 0
    share: Share | None = None
    vsock: Vsock | None = None
    nics: tuple[Nic, ...] = ()
    disks: tuple[Disk, ...] = ()
    confine: Confinement = Confinement()
    accelerator: str = "tcg"
    serial: bool = False
    memory_fd: int = -1
    template: bool = False
    mounted: bool = False


class Vm(Protocol):
    """A VM that was launched.

    `pid` and `pidfd` are the VMM's; after `stop` they stay valid as numbers only.
    """

    pid: int
    pidfd: int

    def wait_ready(self, timeout: float) -> None:
        """Wait for HELLO.

        Raises BootError at the deadline, or at once if the VMM ends before.
        """

    def exited(self) -> bool:
        """Whether the VMM has ended."""

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Call back once when the VMM has ended by itself or by `stop`, in another thread, which must not
        be held.
        """

    def status(self) -> int | None:
        """The VMM's exit status, negative for the signal that killed it; None while it runs."""

    def console_tail(self) -> str:
        """The last 16 KiB that the guest wrote to its console."""

    def pause(self) -> None:
        """Stop the whole VMM; who talks to the guest waits."""

    def resume(self) -> None:
        """Let it run again."""

    def plug(self, device: Nic | Disk) -> Plugged:
        """Add a network card or a disk. Raises HakoError when no port is free, or the disk cannot be opened."""

    def unplug(self, device: str) -> None:
        """Remove a device that was plugged; returns when the guest has let go of it."""

    def grow(self, vcpus: int, memory_mib: int) -> None:
        """Plug vCPUs and memory until the VM has so many in all; it never shrinks."""

    def stop(self, timeout: float = 2.0) -> None:
        """End the VMM, reap it and release what the driver holds. Idempotent, never raises for a dead VMM."""


class Waiting(Protocol):
    """A VMM that was started for a saved VM, and has nothing of it yet but its RAM's file.

    `pid` is the VMM's.
    """

    pid: int

    def enter(self, state_fd: int, share: Share | None, vsock: Vsock | None, nics: tuple[Nic, ...]) -> Vm:
        """Load the devices' state, plug what the saved VM did not have, and let it run.

        The RAM's file is complete by now. Raises HakoError; `stop` is still the caller's then.
        """

    def on_exit(self, callback: Callable[[], None]) -> None:
        """As Vm.on_exit."""

    def status(self) -> int | None:
        """The VMM's exit status, negative for the signal that killed it; None while it runs."""

    def console_tail(self) -> str:
        """As Vm.console_tail."""

    def stop(self, timeout: float = 2.0) -> None:
        """As Vm.stop."""


class Hypervisor(Protocol):
    """A kind of VMM."""

    def launch(self, spec: VmSpec) -> Vm:
        """Start a VM.

        Raises HakoError if the VMM cannot be started at all; boot problems come from `wait_ready`.
        """

    def save(self, spec: VmSpec, state_fd: int, timeout: float) -> None:
        """Boot a template until it says so, write its devices' state to a file, and end it.

        Its RAM is in `spec.memory_fd` then. Raises HakoError, at the latest after `timeout` seconds.
        """

    def fingerprint(self, spec: VmSpec) -> list[str]:
        """Everything that the VM of a template depends on besides files and the VMM's version."""

    def restore(self, spec: VmSpec) -> Waiting:
        """Start a VMM for a saved VM whose `spec` this was; `spec.memory_fd` may still be filled meanwhile."""
