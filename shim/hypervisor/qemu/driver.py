"""The life of a QEMU process: launch, wait for the guest's hello, pause, plug, stop; and why a boot failed.

Owns: QEMU's process, its console, QMP session and disks' descriptors, the root ports in use. Must not know:
virtiofsd, vsock daemons, the agent. Called by sandbox/builder.py through hypervisor/base.py, and by host.py
for its probe.

Whatever ends QEMU (a panic: the guest reboots and -no-reboot exits; a signal; `stop`) is noticed by its
pidfd.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from shim import process
from shim.config import HypervisorConfig
from shim.errors import BootError, HakoError, Timeout, Unavailable, Unsupported
from shim.hypervisor.base import HELLO, Nic, VmSpec
from shim.hypervisor.qemu import argv
from shim.hypervisor.qemu.qmp import Qmp, QmpError
from shim.process import Child, deadline
from shim.watch import Tail

UNPLUG_DEADLINE = 10.0  # seconds for the guest to let go of a device
DIAGNOSIS_DEADLINE = 30.0  # seconds for a second boot that is only there to be watched
QUIT_DEADLINE = 1.0


class Qemu:
    """The hypervisor. One instance serves any number of VMs."""

    def __init__(self, config: HypervisorConfig) -> None:
        self._serial = config.debug_serial
        self._options = argv.Options(
            binary=config.path,
            machine=config.machine_type,
            cpu_model=config.cpu_model,
            tb_size=config.tcg_tb_size,
            ports=config.hotplug_ports if config.machine_type != "microvm" else 0,
            seccomp=config.seccomp_sandbox,
        )

    def launch(self, spec: VmSpec) -> QemuVm:
        """Start QEMU and return at once. Raises BootError for a kernel or disk that cannot be opened."""
        return QemuVm(spec._replace(serial=spec.serial or self._serial), self._options)


class QemuVm:
    """One QEMU process; implements base.Vm."""

    def __init__(self, spec: VmSpec, options: argv.Options) -> None:
        self._spec = spec
        self._options = options
        self._changed = threading.Condition()
        self._ready = False
        self._stopping = threading.Lock()
        self._stopped = False
        self._free_ports = list(range(options.ports))
        self._plugged: dict[str, int] = {}
        self._deleted: set[str] = set()
        self._line = b""
        with ExitStack() as undo:
            self._child = self._start(undo)
            undo.pop_all()
        self.pid = self._child.pid
        self.pidfd = self._child.pidfd
        self._child.on_exit(self._exited)

    # Boot

    def _start(self, undo: ExitStack) -> Child:
        """QEMU with its ends of the connections; our ends are watched before its first instruction."""
        with ExitStack() as theirs:
            qmp, qmp_fd = _pair(undo, theirs)
            console, console_fd = _pair(undo, theirs)
            serial, serial_fd = _pair(undo, theirs) if self._spec.serial else (None, -1)
            fds = argv.Fds(
                qmp_fd,
                console_fd,
                _opened(self._spec.kernel, theirs),
                _opened(self._spec.initrd, theirs) if self._spec.initrd else -1,
                serial_fd,
                tuple(_opened_disks(self._spec, theirs)),
            )
            command = argv.command(self._spec, fds, self._options)
            child = process.spawn(command, fds=_inherited(self._spec, fds), confine=self._spec.confine)
        self._console = Tail(console.detach(), on_data=self._console_said)
        self._serial = Tail(serial.detach()) if serial is not None else None
        self._qmp = Qmp(qmp, self._event)
        return child

    def wait_ready(self, timeout: float, *, explain: bool = True) -> None:
        """See base.Vm. The error has the guest's last lines and QEMU's.

        If there are none, the same kernel is booted a second time with a serial port, unless not `explain`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self.exited(), timeout)
            if self._ready:
                return
        raise self._boot_error(timeout, explain)

    def _boot_error(self, timeout: float, explain: bool) -> BootError:
        status = self._child.wait(0.0)
        if status is None:
            reason = f"no sign of the agent on the console after {timeout:g} s"
        elif status == 0:  # -no-reboot: QEMU takes a panic's reboot as a wish to end
            reason = "the guest ended before its agent was up"
        else:
            reason = f"QEMU {process.describe_status(status)}"
        stderr = self._child.stderr_tail()
        said = self.console_tail()
        killed = status is not None and status < 0  # from outside: another boot would say nothing about it
        if explain and not killed and not said.strip() and not stderr.strip() and not self._spec.serial:
            said = diagnose(self._spec, self._options, min(timeout, DIAGNOSIS_DEADLINE))
        return BootError("boot", reason, console_tail=said, vmm_stderr=stderr)

    def _console_said(self, chunk: bytes) -> None:
        """Look for the hello line; in whichever thread reads the console."""
        if self._ready:
            return
        *lines, self._line = (self._line + chunk).split(b"\n")
        self._line = self._line[-4096:]
        if any(HELLO.encode() in line for line in (*lines, self._line)):
            self._notify(ready=True)

    def _exited(self) -> None:
        self._notify(ready=False)

    def _notify(self, *, ready: bool) -> None:
        with self._changed:
            self._ready = self._ready or ready
            self._changed.notify_all()

    # Life

    def exited(self) -> bool:
        """See base.Vm."""
        return self._child.poll() is not None

    def on_exit(self, callback: Callable[[], None]) -> None:
        """See base.Vm."""
        self._child.on_exit(callback)

    def console_tail(self) -> str:
        """See base.Vm; with a serial port both, early boot first."""
        early = self._serial.text() if self._serial is not None else ""
        return early + self._console.text()

    def pause(self) -> None:
        """See base.Vm. Raises Unavailable if QEMU has ended.

        By a signal, not by QMP's `stop`: that stops the vhost devices too, and vhost-device-vsock breaks
        for good when something comes from the host's side meanwhile.
        """
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """See base.Vm."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self.exited():
            raise Unavailable("QEMU has ended", step="pause or resume")
        self._child.signal(number)

    def plug_nic(self, nic: Nic) -> str:
        """See base.Vm."""
        port = self._take_port()
        name = f"plug{port}"
        try:
            self._plug_nic(nic, name, port)
        except BaseException:
            self._free_ports.append(port)
            raise
        self._plugged[name] = port
        return name

    def _plug_nic(self, nic: Nic, name: str, port: int) -> None:
        self._qmp.execute("getfd", fdname=name, fds=[nic.fd])
        backend: dict[str, Any] = {"type": "tap", "id": name, "fd": name}
        if nic.vhost_fd >= 0:
            self._qmp.execute("getfd", fdname=f"vhost-{name}", fds=[nic.vhost_fd])
            backend |= {"vhost": True, "vhostfd": f"vhost-{name}"}
        self._qmp.execute("netdev_add", **backend)
        try:
            self._add_nic(nic, name, port)
        except BaseException:
            self._qmp.execute("netdev_del", id=name)
            raise

    def _add_nic(self, nic: Nic, name: str, port: int) -> None:
        self._qmp.execute(
            "device_add",
            driver="virtio-net-pci",
            id=name,
            bus=f"port{port}",
            netdev=name,
            mac=nic.mac,
            host_mtu=nic.mtu,
            romfile="",
        )

    def _take_port(self) -> int:
        if not self._free_ports:
            raise HakoError(
                f"all {self._options.ports} hot-plug ports are in use",
                step="plug a device",
                hint="[hypervisor] hotplug_ports",
            )
        return self._free_ports.pop(0)

    def unplug(self, device: str) -> None:
        """See base.Vm. Raises Timeout if the guest does not let go; the device then stays."""
        port = self._plugged[device]
        self._qmp.execute("device_del", id=device)
        with self._changed:
            gone = self._changed.wait_for(lambda: device in self._deleted or self.exited(), UNPLUG_DEADLINE)
        if not gone:
            raise Timeout("the guest does not release the device", step="unplug", object=device)
        self._qmp.execute("netdev_del", id=device)
        self._deleted.discard(device)
        del self._plugged[device]
        self._free_ports.append(port)

    def grow(self, vcpus: int, memory_mib: int) -> None:
        """See base.Vm.

        Raises Unsupported where there is no room for vCPUs (TCG has none), QmpError for memory.
        """
        self._grow_vcpus(vcpus)
        self._grow_memory(memory_mib)

    def _grow_vcpus(self, wanted: int) -> None:
        slots = self._qmp.execute("query-hotpluggable-cpus")
        free = sorted((slot for slot in slots if "qom-path" not in slot), key=lambda slot: _socket_of(slot))
        missing = wanted - (len(slots) - len(free))
        if missing > len(free):
            reason = f"{wanted} vCPUs wanted, {len(slots)} are the most of this VM"
            raise Unsupported(reason, step="grow", hint="an emulated VM (TCG) cannot get more vCPUs")
        for slot in free[: max(0, missing)]:
            name = f"cpu{_socket_of(slot)}"
            self._qmp.execute("device_add", driver=slot["type"], id=name, **slot["props"])

    def _grow_memory(self, wanted_mib: int) -> None:
        dimms = self._qmp.execute("query-memory-devices")
        present = self._spec.memory_mib + sum(dimm["data"]["size"] for dimm in dimms) // (1 << 20)
        missing = -(-max(0, wanted_mib - present) // argv.DIMM_MIB) * argv.DIMM_MIB
        if not missing:
            return
        name = f"dimm{len(dimms)}"
        backend = {"qom-type": "memory-backend-memfd", "size": missing << 20, "share": True}
        self._qmp.execute("object-add", id=f"{name}-ram", **backend)
        try:
            self._qmp.execute("device_add", driver="pc-dimm", id=name, memdev=f"{name}-ram")
        except QmpError:
            self._qmp.execute("object-del", id=f"{name}-ram")
            raise

    def _event(self, name: str, data: dict[str, Any]) -> None:
        """In the watching thread."""
        if name == "DEVICE_DELETED" and "device" in data:
            with self._changed:
                self._deleted.add(data["device"])
                self._changed.notify_all()

    def stop(self, timeout: float = 2.0) -> None:
        """See base.Vm."""
        with self._stopping:
            if self._stopped:
                return
            if timeout > 0 and not self.exited():
                self._quit(timeout)
            self._child.terminate(0)
            self._stopped = True
            self._child.close()  # from here on its end is not told
            self._notify(ready=False)
            self._qmp.close()
            self._console.close()
            if self._serial is not None:
                self._serial.close()

    def _quit(self, timeout: float) -> None:
        left = deadline(timeout)
        self._child.signal(signal.SIGCONT)
        try:
            self._qmp.execute("quit", timeout=min(left(), QUIT_DEADLINE))
        except (Unavailable, Timeout, QmpError):
            pass
        self._child.wait(left())


def diagnose(spec: VmSpec, options: argv.Options, timeout: float) -> str:
    """What a boot of the same kernel and image says on a serial port; everything around the VM is left out.

    A kernel that dies before its console driver is up has said nothing at all on hvc0.
    """
    alone = spec._replace(serial=True, share=None, vsock=None, nics=(), disks=(), name=f"{spec.name}-diagnosis")
    try:
        vm = QemuVm(alone, options)
    except HakoError:
        return ""
    try:
        vm.wait_ready(timeout)
        return ""
    except BootError as exc:
        return exc.console_tail
    finally:
        vm.stop(0)


def _pair(ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, int]:
    """A new connection: our end, and the descriptor of QEMU's, which `theirs` closes once QEMU has it."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.callback(near.close)
    theirs.callback(far.close)
    return near, far.fileno()


def _opened(path: str, theirs: ExitStack, *, read_only: bool = True) -> int:
    """A file that QEMU shall have; opened read-only it cannot be written, whatever QEMU or the guest do."""
    try:
        fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as exc:
        raise BootError("open", f"{path}: {exc.strerror}") from exc
    theirs.callback(os.close, fd)
    return fd


def _opened_disks(spec: VmSpec, theirs: ExitStack) -> Iterator[int]:
    """The image, then the other disks."""
    if spec.image:
        yield _opened(spec.image, theirs)
    for disk in spec.disks:
        yield _opened(disk.path, theirs, read_only=disk.read_only)


def _inherited(spec: VmSpec, fds: argv.Fds) -> dict[str, int]:
    """Every descriptor that the command line names."""
    named = {name: fd for name, fd in fds._asdict().items() if name != "disks"}
    named |= {f"disk{number}": fd for number, fd in enumerate(fds.disks)}
    for number, nic in enumerate(spec.nics):
        named |= {f"net{number}": nic.fd, f"vhost{number}": nic.vhost_fd}
    if spec.share is not None:
        named["share"] = spec.share.fd
    if spec.vsock is not None:
        named["vsock"] = spec.vsock.fd
    return {name: fd for name, fd in named.items() if fd >= 0}


def _socket_of(slot: dict[str, Any]) -> int:
    number: int = slot["props"]["socket-id"]
    return number
