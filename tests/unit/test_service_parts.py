"""Parts of the agent's service without a process: surface, ids, OOM events, devices, storages, modules."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, cast

import pytest

from agent import container_devices, log, modules, sandbox_storages
from agent.api import agent_pb2, health_pb2, oci_pb2
from agent.cgroups import Cgroup
from agent.errors import InvalidSpec, StepError, Unsupported
from agent.linux.loop import Loop
from agent.oom import MAX_KEPT, OomEvents
from agent.sandbox import MAX_ID, Sandbox, check_id
from agent.service import Service
from agent.ttrpc import status
from agent.ttrpc.call import Call
from shim.sandbox.builder import shared_memory
from shim.sandbox.placement import SharedFiles
from shim.sandbox.plan import DEFAULT_SHM
from shim.share.tree import TAG


def test_every_method_of_the_protocol_is_served() -> None:
    """Service has each method of agent.proto and health.proto, with its request class, and no other."""
    table = Service(cast(Sandbox, None), is_init=False, on_destroyed=lambda: None, on_exercise=lambda _request: None).services()
    for file, name in ((agent_pb2, "AgentService"), (health_pb2, "Health")):
        methods = file.DESCRIPTOR.services_by_name[name].methods
        served = table[f"grpc.{name}"]
        assert {method.name for method in methods} == set(served)
        for method in methods:
            assert served[method.name][0].DESCRIPTOR.full_name == method.input_type.full_name


def test_system_call_errors_become_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OSError that no module said better is INTERNAL with the method and the path, not a bare errno."""
    lines: list[str] = []
    monkeypatch.setattr(log, "_write", lines.append)

    class Broken:
        def create(self, request: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/x")

    broken = cast(Sandbox, Broken())
    table = Service(broken, is_init=False, on_destroyed=lambda: None, on_exercise=lambda _request: None).services()
    request, handler = table["grpc.AgentService"]["CreateSandbox"]
    with pytest.raises(StepError, match=r"CreateSandbox: /run/x: (?i:no space left on device)"):
        handler(request(), Call("grpc.AgentService", "CreateSandbox", {}, 0))
    assert "Traceback" in lines[0]


@pytest.mark.parametrize("good", ["a", "0", "A-b_c.d", "x" * MAX_ID])
def test_ids_are_names(good: str) -> None:
    """Letters, digits, and after the first also dot, dash, underscore."""
    assert check_id("f", good) == good


@pytest.mark.parametrize(
    "bad", ["", ".", "..", ".a", "-a", "a/b", "a b", "a\0", "x" * (MAX_ID + 1), "\u0661"]
)
def test_other_ids_are_refused(bad: str) -> None:
    """Nothing that could be a path, an option or endless; not even Unicode's digits."""
    with pytest.raises(InvalidSpec, match="f:"):
        check_id("f", bad)


class CountingCgroup:
    def __init__(self) -> None:
        self.kills = 0
        self.changed: Any = None

    def oom_kills(self) -> int:
        return self.kills

    def watch_oom(self, _loop: Loop, callback: Any) -> None:
        self.changed = callback


def watched(kills: int = 0) -> tuple[OomEvents, CountingCgroup]:
    events = OomEvents(cast(Loop, None))
    cgroup = CountingCgroup()
    cgroup.kills = kills
    events.watch("c", cast(Cgroup, cgroup))
    return events, cgroup


def test_oom_kill_is_told_once_whoever_notices_it_first() -> None:
    """The kernel's event and the look before the exit are one event for the caller."""
    events, cgroup = watched(kills=3)
    told: list[str] = []
    events.check("c")
    cgroup.kills = 4
    events.check("c")
    cgroup.changed()
    events.next(told.append)
    events.next(told.append)
    assert told == ["c"]
    cgroup.kills = 5
    cgroup.changed()
    assert told == ["c", "c"]


def test_oom_caller_that_left_takes_no_event() -> None:
    """A cancelled GetOOMEvent does not swallow the event."""
    events, cgroup = watched()
    left: list[str] = []
    events.next(left.append)()
    cgroup.kills = 1
    cgroup.changed()
    told: list[str] = []
    events.next(told.append)
    assert (left, told) == ([], ["c"])


def test_untold_oom_events_are_bounded() -> None:
    """Nobody asks: the newest are kept, each container once."""
    events = OomEvents(cast(Loop, None))
    for number in range(MAX_KEPT + 5):
        cgroup = CountingCgroup()
        events.watch(f"c{number}", cast(Cgroup, cgroup))
        for cgroup.kills in (1, 2):
            events.check(f"c{number}")
    assert len(events._untold) == MAX_KEPT
    events.forget("c0")
    events.check("c0")


def device_spec() -> oci_pb2.Spec:
    spec = oci_pb2.Spec()
    spec.Linux.Devices.add(Path="/dev/a", Type="b", Major=8, Minor=1)
    spec.Linux.Devices.add(Path="/dev/b", Type="b", Major=8, Minor=2)
    spec.Linux.Resources.Devices.add(Allow=True, Type="b", Major=8, Minor=1, Access="rwm")
    spec.Linux.Resources.Devices.add(Allow=False, Access="rwm")
    return spec


def test_device_numbers_are_the_guests(tmp_path: Path) -> None:
    """Node and rule of the named device get the numbers that it has here; others stay."""
    spec = device_spec()
    container_devices.rewrite(
        spec, [agent_pb2.Device(type="blk", vm_path="/dev/null", container_path="/dev/a")], 0
    )
    null = os.stat("/dev/null")
    assert stat.S_ISCHR(null.st_mode)
    assert [(d.Major, d.Minor) for d in spec.Linux.Devices] == [(1, 3), (8, 2)]
    rules = spec.Linux.Resources.Devices
    assert (rules[0].Major, rules[0].Minor) == (1, 3)
    assert not rules[1].HasField("Major")


def test_device_without_a_place_is_refused() -> None:
    """A device that the spec does not list, and a type that cannot be found here."""
    with pytest.raises(InvalidSpec, match="/dev/zz"):
        wanted = [agent_pb2.Device(type="blk", vm_path="/dev/null", container_path="/dev/zz")]
        container_devices.rewrite(device_spec(), wanted, 0)
    with pytest.raises(Unsupported, match="vfio-pci"):
        wanted = [agent_pb2.Device(type="vfio-pci", container_path="/dev/a")]
        container_devices.rewrite(device_spec(), wanted, 0)


class Mounted:
    """Stands for agent.storage: remembers what is mounted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.points: list[str] = []
        self.calls: list[tuple[str, str]] = []
        monkeypatch.setattr("agent.storage.mount", self.mount)
        monkeypatch.setattr("agent.storage.unmount", self.unmount)

    def mount(self, storage: agent_pb2.Storage, _seconds: float) -> str:
        if storage.driver == "bad":
            raise Unsupported("bad")
        self.points.append(storage.mount_point)
        self.calls.append(("mount", storage.mount_point))
        return storage.mount_point

    def unmount(self, point: str) -> bool:
        if point == "/stuck":
            raise StepError("unmount", errno.EBUSY, point)
        self.points.remove(point)
        self.calls.append(("unmount", point))
        return True


def storages(*pairs: tuple[str, str]) -> list[agent_pb2.Storage]:
    return [agent_pb2.Storage(driver=driver, mount_point=point) for driver, point in pairs]


def test_storage_is_mounted_once_and_unmounted_with_its_last_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two users of one mount point; memory of the guest stays until the sandbox ends."""
    mounted = Mounted(monkeypatch)
    held = sandbox_storages.SandboxStorages(0)
    first = held.acquire(storages(("blk", "/a"), ("ephemeral", "/e")))
    second = held.acquire(storages(("blk", "/a/"), ("ephemeral", "/e")))
    assert mounted.points == ["/a", "/e"]
    held.release(first)
    assert mounted.points == ["/a", "/e"]
    held.release(second)
    assert mounted.points == ["/e"]
    held.release_all()
    assert mounted.points == []


def test_the_share_that_was_saved_is_mounted_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used as it is, by the rehearsal too, and never unmounted; another in its place is mounted over it."""
    mounted = Mounted(monkeypatch)
    asked = sandbox_storages.share("tag")
    for _ in range(2):
        held = sandbox_storages.SandboxStorages(0, "tag")
        held.release(held.acquire([asked]))
        held.acquire([asked])
        held.release_all()
    assert mounted.points == []
    sandbox_storages.SandboxStorages(0, "tag").acquire([sandbox_storages.share("other")])
    assert mounted.points == [sandbox_storages.SHARE_POINT]


def test_the_hosts_share_is_the_one_that_the_agent_mounts() -> None:
    """Word for word: what differs would be mounted a second time."""
    assert SharedFiles(cast(Any, None)).sandbox_storage() == sandbox_storages.share(TAG)


def test_shared_memory_of_the_usual_size_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the pod's if the pod wants it so; of another size it is made anew, and of no pod it goes again."""
    mounted = Mounted(monkeypatch)
    point = sandbox_storages.SHM.mount_point
    held = sandbox_storages.SandboxStorages(0)
    held.prepare()
    held.prepare()
    assert mounted.points == [point]
    held.acquire([shared_memory(DEFAULT_SHM)])
    assert mounted.points == [point], "not mounted twice"
    held.release_all()
    assert mounted.points == []
    held.prepare()
    held.acquire([shared_memory(4096)])
    assert mounted.calls[-2:] == [("unmount", point), ("mount", point)]
    held.release_all()
    held.prepare()
    held.release_all()
    assert mounted.points == []


def test_memory_of_a_container_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """hako's driver option makes a tmpfs the container's own, not the sandbox's."""
    mounted = Mounted(monkeypatch)
    held = sandbox_storages.SandboxStorages(0)
    own = agent_pb2.Storage(driver="ephemeral", mount_point="/own", driver_options=["io.hako.lifetime=container"])
    points = held.acquire([own, *storages(("ephemeral", "/pods"))])
    held.release(points)
    assert mounted.points == ["/pods"]


def test_failed_storage_releases_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """acquire() holds nothing when it raises, and takes nothing from another user."""
    mounted = Mounted(monkeypatch)
    held = sandbox_storages.SandboxStorages(0)
    held.acquire(storages(("blk", "/a")))
    with pytest.raises(Unsupported):
        held.acquire(storages(("blk", "/a"), ("blk", "/b"), ("bad", "/c")))
    assert mounted.points == ["/a"]


def test_stuck_storage_is_logged_and_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be unmounted is said on the console; the rest is unmounted all the same."""
    mounted = Mounted(monkeypatch)
    lines: list[str] = []
    monkeypatch.setattr(log, "_write", lines.append)
    held = sandbox_storages.SandboxStorages(0)
    held.acquire(storages(("blk", "/a"), ("blk", "/stuck")))
    held.release_all()
    assert mounted.points == ["/stuck"]
    assert "/stuck" in lines[0]


def test_modules_load_after_those_they_need(tmp_path: Path) -> None:
    """modules.dep's order, with "-" and "_" being the same in names; an unknown module is named."""
    here = tmp_path / os.uname().release
    here.mkdir()
    (here / "modules.dep").write_text(
        "kernel/a-b.ko: kernel/c.ko kernel/d.ko\nkernel/c.ko: kernel/d.ko\nkernel/d.ko:\n"
    )
    assert modules._in_order("a_b", str(here)) == ["kernel/d.ko", "kernel/c.ko", "kernel/a-b.ko"]
    with pytest.raises(StepError, match="nosuch") as caught:
        modules.load("nosuch", "", str(tmp_path))
    assert caught.value.code == status.INTERNAL
