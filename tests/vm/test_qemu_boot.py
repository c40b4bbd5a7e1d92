"""A real guest in a real QEMU: boot, channel, share, plugging; and every way in which a boot fails."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.api import agent_pb2
from agent.linux import syscalls
from shim.config import HypervisorConfig
from shim.errors import BootError, HakoError, Unavailable, Unsupported
from shim.hypervisor import host
from shim.hypervisor.base import Nic, VmSpec
from shim.hypervisor.qemu.driver import Qemu, QemuVm
from shim.network import tap
from shim.process import Confinement
from shim.share.tree import mounts_below
from tests.framework import bareguest
from tests.framework import vm as framework
from tests.framework.vm import Booted

pytestmark = pytest.mark.vm


@pytest.fixture
def small(guest_files: None) -> VmSpec:
    """A VM of the guest alone."""
    return framework.spec("hako-fault")


@pytest.fixture
def launched(small: VmSpec) -> Iterator[QemuVm]:
    """Such a VM, just launched."""
    vm = Qemu(HypervisorConfig()).launch(small)
    yield vm
    vm.stop(0)


def _boot_error(spec: VmSpec, config: HypervisorConfig | None = None, timeout: float = 60.0) -> BootError:
    vm = Qemu(config or HypervisorConfig()).launch(spec)
    try:
        with pytest.raises(BootError) as caught:
            vm.wait_ready(timeout)
    finally:
        vm.stop(0)
    return caught.value


def test_agent_answers_over_vsock_and_sees_the_share(booted: Booted) -> None:
    """A booted guest serves its API, and mounts what the host shares, also what is added later."""
    booted.check()
    assert "hako-agent: ready" in booted.vm.console_tail()
    booted.mount_share()
    (booted.directory / "root").mkdir()
    assert booted.share.add_rootfs("c1", str(booted.directory / "root"), readonly=False)
    assert booted.details().agent_details.supports_seccomp


def test_nobody_listens_on_other_ports(booted: Booted) -> None:
    """A port without a listener is an error at once, not a time-out; the channel goes on working."""
    with pytest.raises(Unavailable, match="vsock port 4711"):
        booted.vsock.connect(4711, 10)
    booted.check()


def test_pause_stops_the_guest_and_resume_goes_on(booted: Booted) -> None:
    """A paused VM does not answer; a resumed one answers what it was asked meanwhile."""
    booted.vm.pause()
    answered = threading.Event()

    def ask() -> None:
        booted.check()
        answered.set()

    thread = threading.Thread(target=ask)
    thread.start()
    assert not answered.wait(0.5)
    booted.vm.resume()
    assert answered.wait(20)
    thread.join()


def test_network_card_comes_and_goes(booted: Booted) -> None:
    """A plugged card is seen by the guest under its address, and unplugging waits for the guest."""
    fd = _tap()
    card = booted.vm.plug(Nic(fd, "02:00:00:00:00:77"))
    os.close(fd)
    end = time.monotonic() + 20
    while "02:00:00:00:00:77" not in _interfaces(booted) and time.monotonic() < end:
        time.sleep(0.05)
    assert "02:00:00:00:00:77" in _interfaces(booted)
    booted.vm.unplug(card.id)
    assert "02:00:00:00:00:77" not in _interfaces(booted)


def test_vm_grows(guest_files: None) -> None:
    """Plugged memory arrives, once; more than the maximum is refused; and so are vCPUs where they are
    emulated.
    """
    with Booted(max_vcpus=2, max_memory_mib=1024) as guest:
        guest.vm.grow(1, 512)
        guest.vm.grow(1, 512)
        memory = guest.vm._qmp.execute("query-memory-size-summary")
        assert memory == {"base-memory": 256 << 20, "plugged-memory": 256 << 20}
        with pytest.raises(HakoError):
            guest.vm.grow(1, 4096)
        if guest.vm._spec.accelerator == "tcg":
            with pytest.raises(Unsupported, match="2 vCPUs wanted, 1 are the most"):
                guest.vm.grow(2, 512)
        else:
            guest.vm.grow(2, 512)
            assert len(guest.vm._qmp.execute("query-cpus-fast")) == 2
        guest.check()


def test_nothing_is_left_after_stop(guest_files: None) -> None:
    """Processes, sockets, mounts and descriptors of a VM are gone after it."""
    before = set(os.listdir("/proc/self/fd"))
    with Booted() as guest:
        guest.mount_share()
        pids = [guest.vm.pid, guest.virtiofsd.child.pid]
        directory = str(guest.directory)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert not os.path.exists(directory)
    assert mounts_below(directory) == []
    guest.close()
    del guest
    left = set(os.listdir("/proc/self/fd")) - before
    kinds = [os.readlink(f"/proc/self/fd/{fd}") for fd in left if os.path.exists(f"/proc/self/fd/{fd}")]
    assert [kind for kind in kinds if "eventpoll" not in kind] == []


def test_panic_is_in_the_error(small: VmSpec, tmp_path: Path) -> None:
    """A guest without a usable root says so in the error, at once (Kata: "timed out connecting to vsock")."""
    broken = tmp_path / "image"
    broken.write_bytes(bytes(1 << 20))
    start = time.monotonic()
    error = _boot_error(small._replace(image=str(broken), initrd=None))
    assert time.monotonic() - start < 50
    assert "the guest ended" in str(error)
    assert "Unable to mount root fs" in error.console_tail


def test_death_before_the_console_is_explained_by_a_second_boot(small: VmSpec) -> None:
    """A kernel that dies before it has a console is booted once more, with a serial port."""
    bareguest.need_kernel()  # a distribution's, compressed, does not get as far in so little memory
    error = _boot_error(small._replace(memory_mib=32), timeout=8)
    assert "Kernel panic" in error.console_tail


@pytest.mark.parametrize("field", ["kernel", "image"])
def test_missing_file_is_named(small: VmSpec, field: str) -> None:
    """A kernel or an image that is not there is an error of launch, with its path."""
    with pytest.raises(BootError, match="/no/such: No such file"):
        Qemu(HypervisorConfig()).launch(small._replace(**{field: "/no/such"}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(100), "loading elf kernel"),  # arm64
        (b"#!/bin/sh\n" * 500, "invalid kernel header"),
    ],
)
def test_file_that_is_no_kernel_is_refused(small: VmSpec, tmp_path: Path, content: bytes, said: str) -> None:
    """A kernel for another machine, or no kernel at all, is told in QEMU's words."""
    wrong = tmp_path / "kernel"
    wrong.write_bytes(content)
    error = _boot_error(small._replace(kernel=str(wrong), initrd=None), timeout=20)
    assert "QEMU exited with status 1" in str(error)
    assert said in error.vmm_stderr


def test_memory_that_is_not_there_is_told(small: VmSpec) -> None:
    """A VM larger than the machine's address space is refused by QEMU, in its own words."""
    error = _boot_error(small._replace(memory_mib=1 << 40), timeout=20)
    assert "Cannot allocate memory" in error.vmm_stderr


def test_killed_qemu_is_noticed_while_booting(launched: QemuVm) -> None:
    """Who waits for the boot hears of QEMU's death at once, and so does who watches it."""
    ended = threading.Event()
    launched.on_exit(ended.set)
    threading.Timer(0.1, lambda: os.kill(launched.pid, signal.SIGKILL)).start()
    start = time.monotonic()
    with pytest.raises(BootError, match="QEMU was killed by SIGKILL"):
        launched.wait_ready(60)
    assert time.monotonic() - start < 60
    assert ended.wait(5)
    assert launched.exited()
    launched.stop()
    launched.stop()


def test_killed_qemu_is_noticed_later(booted: Booted) -> None:
    """After the boot too: the watcher is called, commands fail with a reason, the daemon ends by itself."""
    ended = threading.Event()
    booted.vm.on_exit(ended.set)
    os.kill(booted.vm.pid, signal.SIGKILL)
    assert ended.wait(5)
    with pytest.raises(Unavailable, match="QEMU has ended"):
        booted.vm.pause()
    assert booted.virtiofsd.child.wait(5) is not None


def test_killed_virtiofsd_is_noticed(booted: Booted) -> None:
    """The death of the share's daemon is told; the VM can still be stopped."""
    ended = threading.Event()
    booted.virtiofsd.child.on_exit(ended.set)
    os.kill(booted.virtiofsd.child.pid, signal.SIGKILL)
    assert ended.wait(5)


def test_killed_vsock_daemon_is_noticed(booted: Booted) -> None:
    """The death of the channel's daemon is told, and connecting fails at once."""
    pid = getattr(booted.vsock, "_child", None)
    if pid is None:
        pytest.skip("this host has vhost-vsock in its kernel: no daemon that could die")
    ended = threading.Event()
    booted.vsock.on_exit(ended.set)
    os.kill(pid.pid, signal.SIGKILL)
    assert ended.wait(5)
    with pytest.raises(Unavailable):
        booted.vsock.connect(1024, 5)


def test_microvm_boots(small: VmSpec) -> None:
    """The smaller machine type boots the same guest."""
    bareguest.need_kernel()  # a distribution's has no driver for virtio-mmio that its initramfs could load
    vm = Qemu(HypervisorConfig(machine_type="microvm")).launch(small)
    try:
        vm.wait_ready(60)
    finally:
        vm.stop()


def test_serial_port_shows_early_boot(small: VmSpec) -> None:
    """With debug_serial the console has what the kernel says before its other console is there."""
    vm = Qemu(HypervisorConfig(debug_serial=True)).launch(small)
    try:
        vm.wait_ready(90)
        assert "TCP: Hash tables configured" in vm.console_tail() or "bridge window" in vm.console_tail()
    finally:
        vm.stop()


def test_accelerator_is_chosen_by_booting(small: VmSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever /dev/kvm is worth here, the probe answers within its deadline, and at once the second time."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path))
    files = host.GuestFiles(small.kernel, small.image, small.initrd)
    start = time.monotonic()
    first = host.probe_accelerator(HypervisorConfig(), files, Confinement())
    assert time.monotonic() - start < host.PROBE_DEADLINE + 2
    assert first.name in ("kvm", "tcg")
    assert first.reason
    start = time.monotonic()
    second = host.probe_accelerator(HypervisorConfig(), files, Confinement())
    assert (second.name, second.cached) == (first.name, True)
    assert time.monotonic() - start < 0.1


def _tap() -> int:
    """A tap in a network namespace of its own, which ends with its descriptor."""
    made: list[int] = []

    def work() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)  # of this thread alone
        made.append(tap.open_tap("hako0"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


def _interfaces(guest: Booted) -> str:
    request = agent_pb2.ListInterfacesRequest()
    return str(guest.agent.call(framework.AGENT, "ListInterfaces", request, agent_pb2.Interfaces, 30))
