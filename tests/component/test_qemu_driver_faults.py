"""QEMU's driver against a VMM that dies, hangs, or talks nonsense (tests/framework/fakeqemu.py)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.api import LEVEL
from shim.config import HypervisorConfig
from shim.errors import BootError, Timeout, Unavailable
from shim.hypervisor.base import VmSpec
from shim.hypervisor.qemu import qmp
from shim.hypervisor.qemu.driver import Qemu, QemuVm
from shim.process import CommandFailed, Confinement

FAKE = Path(__file__).resolve().parents[1] / "framework/fakeqemu.py"
Launch = Callable[[str], QemuVm]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Launch a VM that misbehaves as its name says."""
    vms: list[QemuVm] = []
    kernel = tmp_path / "kernel"
    kernel.touch()

    def start(mode: str) -> QemuVm:
        spec = VmSpec(mode, "u", str(kernel), confine=Confinement())
        vms.append(Qemu(HypervisorConfig(path=str(FAKE))).launch(spec))
        return vms[-1]

    yield start
    for vm in vms:
        vm.stop(0)
        assert not os.path.exists(f"/proc/{vm.pid}")


def test_hello_is_found_in_pieces(launch: Launch) -> None:
    """The hello line is recognised however the console delivers it, and the lines before it are kept."""
    vm = launch("split")
    vm.wait_ready(10)
    assert vm.console_tail().splitlines()[:2] == ["[0.1] first line", "last line"]


def test_an_image_of_another_version_is_told_at_once(launch: Launch) -> None:
    """What host and agent expect of each other differs: nothing is tried, and it is said what to do."""
    start = time.monotonic()
    with pytest.raises(BootError, match=r"another version than hako \(make guest"):
        launch("older").wait_ready(60)
    assert time.monotonic() - start < 10


def test_the_vmm_that_misbehaves_speaks_of_this_version() -> None:
    """It cannot import what it says."""
    assert f'LEVEL = b"{LEVEL}"' in FAKE.read_text()


def test_an_agent_that_is_ready_too_soon_is_told_at_once(tmp_path: Path) -> None:
    """A guest that says that it is ready will never say that it may be saved."""
    kernel = tmp_path / "kernel"
    kernel.touch()
    spec = VmSpec("hello", "u", str(kernel), confine=Confinement())
    start = time.monotonic()
    with open(os.devnull, "rb") as state, pytest.raises(BootError, match="another version than hako"):
        Qemu(HypervisorConfig(path=str(FAKE))).save(spec, state.fileno(), 60)
    assert time.monotonic() - start < 10


def test_a_guest_with_a_wrong_clock_is_not_saved(tmp_path: Path) -> None:
    """All clones of it would run at its speed, their time-outs with them."""
    kernel = tmp_path / "kernel"
    kernel.touch()
    spec = VmSpec("hasty", "u", str(kernel), confine=Confinement())
    with open(os.devnull, "rb") as state, pytest.raises(BootError, match=r"clock is wrong: its 1 s were 0\.[2-7]\d s"):
        Qemu(HypervisorConfig(path=str(FAKE))).save(spec, state.fileno(), 60)


def test_vmm_that_dies_is_quoted(launch: Launch) -> None:
    """Its status and its last words are in the error, long before the deadline."""
    start = time.monotonic()
    with pytest.raises(BootError, match="QEMU exited with status 3") as caught:
        launch("die").wait_ready(60)
    assert caught.value.vmm_stderr == "qemu: no such luck\n"
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("mode", ["hang", "silent"])
def test_silence_ends_at_the_deadline(launch: Launch, mode: str) -> None:
    """A guest that never says hello is an error after the time that was given, not later."""
    vm = launch(mode)
    start = time.monotonic()
    with pytest.raises(BootError, match=r"no sign of the agent on the console after 0\.5 s"):
        vm.wait_ready(0.5, explain=False)
    assert time.monotonic() - start < 5
    assert not vm.exited()


def test_console_that_never_stops_is_bounded(launch: Launch) -> None:
    """A guest that floods its console costs 16 KiB."""
    vm = launch("endless")
    with pytest.raises(BootError) as caught:
        vm.wait_ready(1.0, explain=False)
    assert 10_000 < len(caught.value.console_tail) <= 16384


def test_hanging_monitor_does_not_hang_us(launch: Launch) -> None:
    """A VMM that does not answer QMP is stopped all the same, within the deadline."""
    vm = launch("hang")
    start = time.monotonic()
    vm.stop(0.5)
    assert time.monotonic() - start < 5
    assert vm.exited()


def test_nonsense_on_the_monitor_is_a_timeout(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no QMP is not taken for an answer."""
    vm = launch("garbage")
    vm.wait_ready(10)
    with pytest.raises(Timeout):
        vm._qmp.execute("query-status", timeout=0.3)
    assert qmp.MESSAGE_BYTES == 1 << 20


def test_stubborn_vmm_is_killed(launch: Launch) -> None:
    """Neither quit nor SIGTERM helps: it is killed and reaped when stop returns."""
    vm = launch("stubborn")
    vm.wait_ready(10)
    start = time.monotonic()
    vm.stop(0.5)
    assert time.monotonic() - start < 5
    assert not os.path.exists(f"/proc/{vm.pid}")


def test_stop_is_quick_and_repeatable_from_threads(launch: Launch) -> None:
    """Two threads that stop the same VM both return, and it is stopped once."""
    vm = launch("hello")
    vm.wait_ready(10)
    threads = [threading.Thread(target=vm.stop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert vm.exited()


def test_a_stop_wakes_who_waits_for_the_hello(launch: Launch) -> None:
    """Somebody else ends the VM (a daemon has died): the boot has failed, now and not at its deadline."""
    vm = launch("silent")
    threading.Timer(0.3, vm.stop, (0,)).start()
    start = time.monotonic()
    with pytest.raises(BootError, match="killed by SIGKILL"):
        vm.wait_ready(60)
    assert time.monotonic() - start < 20


def test_commands_after_the_end_say_so(launch: Launch) -> None:
    """A dead VMM is an error that says that it is dead."""
    vm = launch("hello")
    vm.wait_ready(10)
    os.kill(vm.pid, signal.SIGKILL)
    vm._child.wait(5)
    with pytest.raises(Unavailable):
        vm.pause()
    with pytest.raises(Unavailable):
        vm.grow(2, 0)


def test_paused_vm_can_be_stopped(launch: Launch) -> None:
    """stop() does not wait for a VMM that was paused."""
    vm = launch("hello")
    vm.wait_ready(10)
    vm.pause()
    start = time.monotonic()
    vm.stop(5)
    assert time.monotonic() - start < 4


def test_missing_vmm_is_told(tmp_path: Path) -> None:
    """Without QEMU the error names its path."""
    (tmp_path / "kernel").touch()
    spec = VmSpec("x", "u", str(tmp_path / "kernel"))
    with pytest.raises(CommandFailed, match=r"/no/qemu.*there is no such program"):
        Qemu(HypervisorConfig(path="/no/qemu")).launch(spec)


def test_failed_launch_leaks_no_descriptor(tmp_path: Path) -> None:
    """A launch that fails leaves no socket behind in the pod process."""
    (tmp_path / "kernel").touch()
    spec = VmSpec("x", "u", str(tmp_path / "kernel"), image=str(tmp_path / "kernel"))
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(CommandFailed):
            Qemu(HypervisorConfig(path="/no/qemu")).launch(spec)
    assert len(os.listdir("/proc/self/fd")) <= len(before)
