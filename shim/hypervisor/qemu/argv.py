"""QEMU's command line for a VmSpec: one pure function per device, option and value on one line.

Owns: which devices a VM has, their places on the bus, the guest kernel's command line. Must not know:
processes, sockets, what is at the other end of a descriptor. Called by driver.py; tests/golden/qemu/ has
the whole lines.

QEMU gets descriptors for everything but its own firmware, so that it runs as an unprivileged user with
`-sandbox`. All devices are virtio 1.0 on PCIe (q35) or on virtio-mmio (microvm).
"""

from __future__ import annotations

from typing import NamedTuple

from shim.hypervisor.base import Disk, Nic, Share, VmSpec, Vsock

MEMORY_SLOTS = 16  # DIMMs that can be plugged; each is one vhost-user memory region more
DIMM_MIB = 128  # x86 hot-plugs memory in sections of 128 MiB
PORTS_SLOT = 0x10  # the first slot of the root complex that holds root ports, eight of them in each
PORTS_PER_SLOT = 8
# A plugged vsock device of an emulated VM has a plain interrupt: the guest has the code for setting up a message
# signalled one to translate first (7 ms), and nothing in an emulator makes those cheaper afterwards (make bench).
PLAIN_INTERRUPT = {"vectors": 0}
# TCG carries out `rep movsb` byte by byte: without the features that make the kernel prefer it, it copies eight bytes at
# a time, and pipes and virtio-fs move four and two times as much (make bench).
TCG_MODEL = "max,-erms,-fsrm"


class Fds(NamedTuple):
    """Descriptors that QEMU inherits: its connections, the files it boots, one per disk. -1: not there."""

    qmp: int
    console: int
    kernel: int
    initrd: int = -1
    serial: int = -1
    arrival: int = -1
    disks: tuple[int, ...] = ()


class Options(NamedTuple):
    """What the configuration says of QEMU itself (see HypervisorConfig), and `tsc_khz`, 0 if not known: see clock.py."""

    binary: str = "/usr/bin/qemu-system-x86_64"
    machine: str = "q35"
    cpu_model: str = ""
    tb_size: int = 64
    ports: int = 8
    seccomp: bool = True
    tsc_khz: int = 0


def command(spec: VmSpec, fds: Fds, options: Options, *, incoming: bool = False) -> list[str]:
    """The whole command line; with `incoming` of a QEMU that waits for the state of a VM with the same spec."""
    bus = Bus(options.machine)
    return [
        options.binary,
        *firmware(options),
        *identity(spec),
        *machine(spec, options),
        *processors(spec, options),
        *memory(spec),
        *kernel(spec, fds, options),
        *monitor(fds),
        *console(fds, bus),
        *arrival(fds),
        *serial(fds),
        *entropy(bus),
        *balloon(bus),
        *generation_id(spec, options),
        *root_disk(spec, fds, bus),
        *(word for at, disk in enumerate(spec.disks) for word in extra_disk(disk, fds.disks, at, spec, bus)),
        *(share(spec.share, bus) if spec.mounted or not spec.template else []),
        *([] if spec.template else vsock(spec.vsock, bus)),
        *(word for number, nic in enumerate(spec.nics) for word in network(nic, f"net{number}", bus)),
        *root_ports(options),
        *(placeholders(spec) if spec.template else []),
        *confinement(options),
        *(["-S", "-incoming", "defer"] if incoming else []),
    ]


class Bus:
    """Names of virtio devices on the machine's bus, and the next free slot."""

    def __init__(self, machine: str) -> None:
        self._pci = machine != "microvm"
        self._slot = 1

    def device(self, kind: str, properties: str) -> list[str]:
        """`-device` for virtio device `kind`, in the next slot."""
        if not self._pci:
            return ["-device", f"{kind}-device,{properties}"]
        self._slot += 1
        return ["-device", f"{kind}-pci,bus=pcie.0,addr={self._slot:#x},{properties}"]

    @property
    def pci(self) -> bool:
        """Whether devices are on PCI."""
        return self._pci


def firmware(options: Options) -> list[str]:
    """Where a QEMU that is not the distribution's has its firmware: beside it.

    Debian's looks below /usr wherever it was unpacked to (--disable-relocatable), and would find another version's.
    """
    prefix = options.binary.rpartition("/bin/")[0]
    return [] if prefix in ("", "/usr") else ["-L", f"{prefix}/share/qemu", "-L", f"{prefix}/share/seabios"]


def identity(spec: VmSpec) -> list[str]:
    return [
        "-name", f"{spec.name},debug-threads=on",
        "-uuid", spec.uuid,
    ]  # fmt: skip


def machine(spec: VmSpec, options: Options) -> list[str]:
    """The board without what a VM has no use for: SATA, SMBus, USB, keyboard; and how its CPU runs."""
    if options.machine == "microvm":
        # pit and pic: without a paravirtual clock (TCG) the kernel finds no other timer and hangs silently.
        board = "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=off,auto-kernel-cmdline=on"
    else:
        board = "q35,vmport=off,smbus=off,sata=off,usb=off,i8042=off"
    return [
        "-nodefaults", "-no-user-config", "-no-reboot",
        "-display", "none",
        "-machine", f"{board},dump-guest-core=off,memory-backend=ram",
        "-accel", accelerator(spec.accelerator, options),
        "-rtc", "base=utc,clock=host",
    ]  # fmt: skip


def accelerator(name: str, options: Options) -> str:
    """`tb-size` bounds the translation cache, which grows past 85 MiB by itself."""
    if name != "tcg":
        return name
    return f"tcg,thread=multi,tb-size={options.tb_size}" if options.tb_size else "tcg,thread=multi"


def processors(spec: VmSpec, options: Options) -> list[str]:
    """Each vCPU is a socket, as hot-plugged ones are.

    TCG gets no room for more: when the running vCPUs have taken all regions of the translation cache, QEMU
    7.2 and 10.0 abort on a new one (tcg_region_initial_alloc__locked: assertion failed).
    """
    model = options.cpu_model or ("host,pmu=off" if spec.accelerator == "kvm" else TCG_MODEL)
    most = spec.vcpus if spec.accelerator == "tcg" else max(spec.vcpus, spec.max_vcpus)
    return [
        "-cpu", model,
        "-smp", f"cpus={spec.vcpus},sockets={most},cores=1,threads=1,maxcpus={most}",
    ]  # fmt: skip


def memory(spec: VmSpec) -> list[str]:
    """Memory that the vhost-user daemons can map (share=on), pages as they are touched.

    A given descriptor is opened by name: migration leaves out shared RAM that is a named file
    (x-ignore-shared), from QEMU 8.2 on not that of memory-backend-memfd.
    """
    size = f"size={spec.memory_mib}M"
    if spec.max_memory_mib > spec.memory_mib:
        size += f",slots={MEMORY_SLOTS},maxmem={spec.max_memory_mib}M"
    named = f"memory-backend-file,mem-path=/proc/self/fd/{spec.memory_fd}"
    backend = named if spec.memory_fd >= 0 else "memory-backend-memfd"
    return [
        "-m", size,
        "-object", f"{backend},id=ram,size={spec.memory_mib}M,share=on",
    ]  # fmt: skip


def kernel(spec: VmSpec, fds: Fds, options: Options) -> list[str]:
    """The files by descriptor: QEMU's user may not be able to walk to them."""
    words = ["-kernel", f"/proc/self/fd/{fds.kernel}", "-append", kernel_command_line(spec, options.tsc_khz)]
    return [*words, "-initrd", f"/proc/self/fd/{fds.initrd}"] if fds.initrd >= 0 else words


# Less to find out and to wait for at boot. noforce: with memory that can be plugged above 4 GiB the kernel
# else sets 64 MiB aside for devices that cannot reach it.
QUICK = (
    "noreplace-smp no_timer_check tsc=reliable swiotlb=noforce rcupdate.rcu_expedited=1 random.trust_cpu=on"
    " cryptomgr.notests memhp_default_state=online dummy.numdummies=0"
)


def kernel_command_line(spec: VmSpec, tsc_khz: int = 0) -> str:
    """What the guest's kernel is told. A panic ends the VM (-no-reboot), so that it is noticed at once.

    `tsc_khz`: of the counter that an emulated guest sees; 0: it has to find out.
    """
    if spec.serial:
        words = ["earlyprintk=ttyS0", "console=ttyS0", "console=hvc0"]
    else:
        words = ["console=hvc0", "quiet", "8250.nr_uarts=0"]
    words += ["panic=-1", "reboot=t", QUICK]
    if spec.accelerator == "tcg":
        words.append("mitigations=off")  # the CPU is emulated, it does not speculate
        # QEMU does not see what virtiofsd writes into the guest's memory, and goes on executing the code that it translated
        # from the page before. Zeroing a page when it is allocated is a write that it sees (Debian's kernel has that on).
        words.append("init_on_alloc=1")
        if tsc_khz:
            words.append(f"tsc_early_khz={tsc_khz}")
        if spec.vcpus == 1:
            words.append("nolapic_timer")  # saves its calibration; the HPET ticks
    if spec.image:
        words += ["root=/dev/vda", "rootfstype=erofs", "ro", "init=/init"]
    if spec.template:
        words.append("agent.template=1")
        if spec.mounted and spec.share is not None:
            words.append(f"agent.share={spec.share.tag}")
        if spec.accelerator == "tcg" and spec.vcpus > 1:
            words.append("agent.rehearse=1")
    if spec.cmdline_extra:
        words.append(spec.cmdline_extra)
    return " ".join(words)


def monitor(fds: Fds) -> list[str]:
    return [
        "-chardev", f"socket,id=qmp,fd={fds.qmp}",
        "-mon", "chardev=qmp,mode=control",
    ]  # fmt: skip


def console(fds: Fds, bus: Bus) -> list[str]:
    """hvc0."""
    return [
        "-chardev", f"socket,id=console,fd={fds.console}",
        *bus.device("virtio-serial", "id=serial0,max_ports=2"),
        "-device", "virtconsole,bus=serial0.0,chardev=console",
    ]  # fmt: skip


def arrival(fds: Fds) -> list[str]:
    """A port on which a saved VM that runs again is told so, and says HELLO."""
    if fds.arrival < 0:
        return []
    return [
        "-chardev", f"socket,id=arrival,fd={fds.arrival}",
        "-device", "virtserialport,bus=serial0.0,chardev=arrival,name=hako.arrival",
    ]  # fmt: skip


def serial(fds: Fds) -> list[str]:
    """ttyS0, only to see why a boot fails: each character costs an exit."""
    if fds.serial < 0:
        return ["-serial", "none"]
    return [
        "-chardev", f"socket,id=ttyS0,fd={fds.serial}",
        "-serial", "chardev:ttyS0",
    ]  # fmt: skip


def entropy(bus: Bus) -> list[str]:
    """rng-builtin is getrandom(2) in QEMU: no file to open."""
    return ["-object", "rng-builtin,id=rng", *bus.device("virtio-rng", "rng=rng")]


def balloon(bus: Bus) -> list[str]:
    """Only for free-page-reporting: pages that the guest frees go back to the host."""
    return bus.device("virtio-balloon", "free-page-reporting=on")


def generation_id(spec: VmSpec, options: Options) -> list[str]:
    """Changes when a VM is restored, which reseeds the guest's random pool. It needs ACPI.

    Emulated clones do without: the host's seed does the same (sandbox/clone.py), and interpreting ACPI's code for the
    first time costs them 2500 pieces of code, 12 ms.
    """
    if options.machine == "microvm" or (spec.template and spec.accelerator == "tcg"):
        return []
    return ["-device", "vmgenid,guid=auto"]


def root_disk(spec: VmSpec, fds: Fds, bus: Bus) -> list[str]:
    """The guest's image, /dev/vda: opened read-only by us, and read-only in QEMU and in the guest."""
    if not spec.image:
        return []
    return _disk("root", fds.disks[0], 0, bus, read_only=True)


def extra_disk(disk: Disk, fds: tuple[int, ...], at: int, spec: VmSpec, bus: Bus) -> list[str]:
    number = at + bool(spec.image)
    return _disk(disk.id, fds[number], number, bus, read_only=disk.read_only)


def _disk(name: str, fd: int, number: int, bus: Bus, *, read_only: bool) -> list[str]:
    """A raw disk of the descriptor `fd`, in descriptor set `number`. Locking: read-only images are shared."""
    mode = "on" if read_only else "off"
    backend = f"driver=raw,node-name=disk-{name},read-only={mode}"
    file = f"file.driver=file,file.filename=/dev/fdset/{number},file.read-only={mode}"
    locking = "off" if read_only else "auto"
    return [
        "-add-fd", f"fd={fd},set={number}",
        "-blockdev", f"{backend},{file},file.locking={locking}",
        *bus.device("virtio-blk", f"drive=disk-{name},serial={name}"),
    ]  # fmt: skip


def share(given: Share | None, bus: Bus) -> list[str]:
    if given is None:
        return []
    return [
        "-chardev", f"socket,id=share,fd={given.fd}",
        *bus.device("vhost-user-fs", f"chardev=share,tag={given.tag},queue-size={given.queue_size}"),
    ]  # fmt: skip


def vsock(given: Vsock | None, bus: Bus) -> list[str]:
    if given is None:
        return []
    if given.cid:
        return bus.device("vhost-vsock", f"vhostfd={given.fd},guest-cid={given.cid}")
    return ["-chardev", f"socket,id=vsock,fd={given.fd}", *bus.device("vhost-user-vsock", "chardev=vsock")]


def placeholders(spec: VmSpec) -> list[str]:
    """Devices of a template, as and where its clones get theirs plugged: functions of the device in the first port."""
    words = [] if spec.vsock is None else _vsock_placeholder(spec.vsock, spec.accelerator)
    if spec.share is not None and not spec.mounted:
        device = f"chardev=share,tag={spec.share.tag},queue-size={spec.share.queue_size}"
        words += ["-chardev", f"socket,id=share,fd={spec.share.fd}"]
        words += ["-device", f"vhost-user-fs-pci,id=share,bus=port0,addr=0.1,multifunction=on,{device}"]
    return words


def placeholder_names(spec: VmSpec) -> list[str]:
    """Their ids, in the order in which they can go: function 0 is the last."""
    return [*(["share"] if spec.share is not None and not spec.mounted else []), "vsock"]


def _vsock_placeholder(given: Vsock, accelerator: str) -> list[str]:
    place = "id=vsock,bus=port0,addr=0.0,multifunction=on"
    place += "".join(f",{name}={value}" for name, value in vsock_interrupt(accelerator).items())
    if given.cid:
        return ["-device", f"vhost-vsock-pci,{place},vhostfd={given.fd},guest-cid={given.cid}"]
    return ["-chardev", f"socket,id=vsock,fd={given.fd}", "-device", f"vhost-user-vsock-pci,{place},chardev=vsock"]


def vsock_interrupt(accelerator: str) -> dict[str, int]:
    """Properties of a vsock device that is plugged, or is there to be replaced by one."""
    return PLAIN_INTERRUPT if accelerator == "tcg" else {}


def network(nic: Nic, name: str, bus: Bus) -> list[str]:
    """A card on a tap that the shim opened; no option ROM, nothing boots from it."""
    backend = f"tap,id={name},fd={nic.fd}"
    if nic.vhost_fd >= 0:
        backend += f",vhost=on,vhostfd={nic.vhost_fd}"
    rom = ",romfile=" if bus.pci else ""
    return [
        "-netdev", backend,
        *bus.device("virtio-net", f"netdev={name},mac={nic.mac},host_mtu={nic.mtu}{rom}"),
    ]  # fmt: skip


def root_ports(options: Options) -> list[str]:
    """Empty PCIe ports, one per device that can be plugged later; none on microvm."""
    if options.machine == "microvm":
        return []
    return [word for number in range(options.ports) for word in ("-device", root_port(number))]


def root_port(number: int) -> str:
    """Port `number`, whose secondary bus is `port<number>`; eight functions in one slot."""
    slot, function = divmod(number, PORTS_PER_SLOT)
    place = f"addr={PORTS_SLOT + slot:#x}.{function:#x}" + (",multifunction=on" if function == 0 else "")
    return f"pcie-root-port,id=port{number},bus=pcie.0,{place},chassis={number + 1},slot={number + 1}"


def port_path(number: int) -> str:
    """PCI path, from the root bus, of what is plugged into port `number` as function 0."""
    slot, function = divmod(number, PORTS_PER_SLOT)
    return f"{PORTS_SLOT + slot:02x}.{function:x}/00"


def confinement(options: Options) -> list[str]:
    """seccomp: no new privileges, programs, priorities or old calls. QEMU needs none."""
    if not options.seccomp:
        return []
    return ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
