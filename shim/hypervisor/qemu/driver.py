"""The life of a QEMU process: launch, wait for the guest's hello, pause, stop; and why a boot failed.

Owns: QEMU's process, its console, QMP session and disks' descriptors. What is plugged is plug.py's matter, saving
and restoring restore.py's. Must not know: virtiofsd, vsock daemons, the agent. Called by sandbox/builder.py and
sandbox/templatebuild.py through hypervisor/base.py, and by host.py for its probe.

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

from shim import process
from shim.config import HypervisorConfig
from shim.errors import BootError, HakoError, Timeout, Unavailable
from shim.hypervisor import clock
from shim.hypervisor.base import HELLO, READY, TEMPLATE, WARM, Disk, Nic, Plugged, Share, VmSpec, Vsock
from shim.hypervisor.qemu import argv, restore
from shim.hypervisor.qemu.events import Events
from shim.hypervisor.qemu.plug import Plugs
from shim.hypervisor.qemu.qmp import Qmp, QmpError
from shim.process import Child, deadline
from shim.watch import Tail

DIAGNOSIS_DEADLINE = 30.0  # seconds for a second boot that is only there to be watched
QUIT_DEADLINE = 1.0


class Qemu:
    """The hypervisor. One instance serves any number of VMs."""

    def __init__(self, config: HypervisorConfig) -> None:
        self._serial = config.debug_serial
        self._options = options(config)

    def launch(self, spec: VmSpec) -> QemuVm:
        """Start QEMU and return at once. Raises BootError for a kernel or disk that cannot be opened."""
        return QemuVm(spec._replace(serial=spec.serial or self._serial), self._options)

    def save(self, spec: VmSpec, state_fd: int, timeout: float) -> None:
        """See base.Hypervisor."""
        left = deadline(timeout)
        vm = QemuVm(spec, self._options, hello=TEMPLATE)
        try:
            vm.wait_ready(left())
            vm.check_clock()
            vm.save(state_fd, left())
        finally:
            vm.stop(0)

    def fingerprint(self, spec: VmSpec) -> list[str]:
        """See base.Hypervisor: the command line, files and connections left out."""
        share = spec.share._replace(fd=0) if spec.share is not None else None
        plain = spec._replace(name="", uuid="", memory_fd=0, share=share)
        disks = tuple(0 for _ in range(len(spec.disks) + bool(spec.image)))
        fds = argv.Fds(0, 0, 0, 0 if spec.initrd else -1, arrival=0 if spec.template else -1, disks=disks)
        return argv.command(plain, fds, self._options)

    def restore(self, spec: VmSpec) -> QemuVm:
        """See base.Hypervisor; a QemuVm is what waits and, after `enter`, what runs."""
        return QemuVm(spec, self._options, incoming=True)


def options(config: HypervisorConfig) -> argv.Options:
    """What the configuration says of QEMU itself, and the host of its counter."""
    return argv.Options(
        binary=config.path,
        machine=config.machine_type,
        cpu_model=config.cpu_model,
        tb_size=config.tcg_tb_size,
        ports=config.hotplug_ports if config.machine_type != "microvm" else 0,
        seccomp=config.seccomp_sandbox,
        tsc_khz=clock.counter_khz(),
    )


class QemuVm:
    """One QEMU process; implements base.Vm, and base.Waiting when it was started with `incoming`.

    `hello` is the line on the console that makes it ready.
    """

    def __init__(self, spec: VmSpec, options: argv.Options, *, hello: str = HELLO, incoming: bool = False) -> None:
        self._spec = spec
        self._options = options
        self._hello = hello.encode()
        self._incoming = incoming
        self._changed = threading.Condition()
        self._ready = False
        self._refused = ""
        self._stopping = threading.Lock()
        self._stopped = False
        self._events = Events()
        self._line = b""
        self._rest = clock.Rest()
        with ExitStack() as undo:
            self._child = self._start(undo)
            undo.pop_all()
        self._plugs = Plugs(self._qmp, self._events, spec, options.ports)
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
            arrival, arrival_fd = _pair(undo, theirs) if self._spec.template else (None, -1)
            fds = argv.Fds(
                qmp_fd,
                console_fd,
                _opened(self._spec.kernel, theirs),
                _opened(self._spec.initrd, theirs) if self._spec.initrd else -1,
                serial_fd,
                arrival_fd,
                tuple(_opened_disks(self._spec, theirs)),
            )
            command = argv.command(self._spec, fds, self._options, incoming=self._incoming)
            child = process.spawn(command, fds=_inherited(self._spec, fds), confine=self._spec.confine)
        self._arrival = arrival
        self._answer = Tail(os.dup(arrival.fileno()), on_data=self._console_said) if arrival is not None else None
        self._console = Tail(console.detach(), on_data=self._console_said)
        self._serial = Tail(serial.detach()) if serial is not None else None
        self._qmp = Qmp(qmp, self._events.take)
        return child

    def wait_ready(self, timeout: float, *, explain: bool = True) -> None:
        """See base.Vm. The error has the guest's last lines and QEMU's.

        If there are none, the same kernel is booted a second time with a serial port, unless not `explain`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._refused or self.exited(), timeout)
            if self._ready:
                return
        raise self._boot_error(timeout, explain)

    def check_clock(self) -> None:
        """Raises BootError if the guest, that is ready to be saved, kept time wrongly before that."""
        refusal = self._rest.refusal()
        if refusal:
            raise BootError("boot", refusal)

    def _boot_error(self, timeout: float, explain: bool) -> BootError:
        status = self._child.wait(0.0)
        if self._refused:
            reason = self._refused
        elif status is None:
            reason = f"no sign of the agent on the console after {timeout:g} s"
        elif status == 0:  # -no-reboot: QEMU takes a panic's reboot as a wish to end
            reason = "the guest ended before its agent was up"
        else:
            reason = f"QEMU {process.describe_status(status)}"
        stderr = self._child.stderr_tail()
        said = self.console_tail()
        killed = status is not None and status < 0  # from outside: another boot would say nothing about it
        explain = explain and not killed and not self._incoming
        if explain and not said.strip() and not stderr.strip() and not self._spec.serial:
            said = diagnose(self._spec, self._options, min(timeout, DIAGNOSIS_DEADLINE))
        return BootError("boot", reason, console_tail=said, vmm_stderr=stderr, killed=status == -signal.SIGKILL)

    def _console_said(self, chunk: bytes) -> None:
        """Look for the hello line; in whichever thread reads the console."""
        if self._ready:
            return
        *lines, self._line = (self._line + chunk).split(b"\n")
        self._line = self._line[-4096:]
        for line in lines:
            self._rest.begins(line.decode("utf-8", "replace"))
        if any(self._hello in line for line in lines):
            self._rest.ends()
            self._notify(ready=True)
        elif any(word.encode() in line for line in lines for word in (READY, WARM)):
            self._refused = "the guest's image is of another version than hako (make guest, or make install, makes it anew)"
            self._notify(ready=False)

    def _exited(self) -> None:
        self._events.end()
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

    def status(self) -> int | None:
        """See base.Vm."""
        return self._child.poll()

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

    def save(self, state_fd: int, timeout: float) -> None:
        """Stop for good and write the devices' state to a file. Raises HakoError."""
        restore.save(self._qmp, self._events, argv.placeholder_names(self._spec), state_fd, timeout)

    def enter(self, state_fd: int, share: Share | None, vsock: Vsock | None, nics: tuple[Nic, ...]) -> QemuVm:
        """See base.Waiting. What is plugged before the guest runs, it finds all at once."""
        try:
            restore.load(self._qmp, self._events, state_fd)
            self._plugs.pod(share if self._spec.share is None else None, vsock, nics)
            self._qmp.execute("cont")
            if self._arrival is not None:
                self._arrival.sendall(b"\n")
        except (Unavailable, QmpError, OSError) as exc:
            # What QEMU says of a stream that it refuses comes with its end; and that comes when its memory is gone.
            status = self._child.wait(0.2 if isinstance(exc, QmpError) else 1.0)
            stderr = self._child.stderr_tail()
            killed = status == -signal.SIGKILL
            reason = f"QEMU {process.describe_status(status)}" if killed else str(exc)
            raise BootError("restore", reason, vmm_stderr=stderr, killed=killed) from exc
        return self

    def plug(self, device: Nic | Disk) -> Plugged:
        """See base.Vm."""
        return self._plugs.nic(device) if isinstance(device, Nic) else self._plugs.disk(device)

    def unplug(self, device: str) -> None:
        """See base.Vm. Raises Timeout if the guest does not let go; the device then stays."""
        self._plugs.unplug(device)

    def grow(self, vcpus: int, memory_mib: int) -> None:
        """See base.Vm.

        Raises Unsupported where there is no room for vCPUs (TCG has none), QmpError and Timeout for memory.
        """
        self._plugs.vcpus(vcpus)
        self._plugs.memory(memory_mib)

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
            if self._arrival is not None and self._answer is not None:
                self._answer.close()
                self._arrival.close()

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
    alone = spec._replace(
        serial=True,
        share=None,
        vsock=None,
        nics=(),
        disks=(),
        name=f"{spec.name}-diagnosis",
        memory_fd=-1,
        template=False,
    )
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
    named["memory"] = spec.memory_fd
    named |= {f"disk{number}": fd for number, fd in enumerate(fds.disks)}
    for number, nic in enumerate(spec.nics):
        named |= {f"net{number}": nic.fd, f"vhost{number}": nic.vhost_fd}
    if spec.share is not None:
        named["share"] = spec.share.fd
    if spec.vsock is not None:
        named["vsock"] = spec.vsock.fd
    return {name: fd for name, fd in named.items() if fd >= 0}

