"""What the engine sees when the VM dies, the guest misbehaves or a step of Create fails."""

from __future__ import annotations

import glob
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.ttrpc import status
from agent.ttrpc.status import RpcError
from shim.errors import BootError, HakoError
from shim.sandbox import store, stub
from shim.task.api import task_pb2
from tests.framework.containerd import short_directory
from tests.framework.taskpod import Pod, alive

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and cgroups")

TYPE = "io.kubernetes.cri.container-type"
GROUP = {"io.kubernetes.cri.sandbox-id": "pod1"}
SANDBOX = {"annotations": {TYPE: "sandbox", **GROUP}}
MEMBER = {"annotations": {TYPE: "container", **GROUP}}


@pytest.fixture
def pod() -> Iterator[Pod]:
    """A pod process with a fake guest."""
    with short_directory() as directory:
        pod = Pod(directory)
        yield pod
        pod.close()


def mounts_of(directory: Path) -> list[str]:
    """Mount points below a directory."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(f"{directory}/")]


def start_in_vain(pod: Pod) -> None:
    """A Start that is refused in the end."""
    with pytest.raises(RpcError):
        pod.call("Start", id="pod1")


def assert_gone(pod: Pod) -> None:
    """Nothing of the pod is left on the host: of its containers at once, of its machine soon."""
    assert not mounts_of(pod.directory)
    deadline = time.monotonic() + 5
    while left := glob.glob(f"{pod.directory}/state/pods/*/*"):  # pathlib's raises where a directory goes
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


@pytest.mark.parametrize("state", ["created", "running", "paused"])
def test_the_end_of_the_vm_ends_every_process(pod: Pod, state: str) -> None:
    """QEMU killed in any state: Wait answers 137, an exit is told once, State is STOPPED, Delete works."""
    pid = pod.create("pod1", "sleep")
    if state != "created":
        pod.call("Start", id="pod1")
    if state == "paused":
        pod.call("Pause", id="pod1")
    pod.machine.die()
    assert pod.call("Wait", id="pod1", timeout=5).exit_status == 137
    assert pod.call("State", id="pod1").status == task_pb2.STOPPED
    assert not alive(pid)
    assert pod.call("Delete", id="pod1").exit_status == 137
    pod.events.wait_for("delete")
    assert pod.events.topics().count("exit") == 1
    assert_gone(pod)


def test_a_stub_that_does_not_end_keeps_no_exit_back(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs in the kernel, or somebody traces it: the container's exit is told all the same."""
    pod.run("pod1", "sleep")
    host = pod.sandbox.find("pod1").host
    end_stub = host.end_stub

    def refuse() -> None:
        raise HakoError("does not end after SIGKILL")

    monkeypatch.setattr(host, "end_stub", refuse)
    pod.guest.processes["pod1", "pod1"].end(7)
    assert pod.call("Wait", id="pod1", timeout=5).exit_status == 7
    assert pod.events.wait_for("exit").exit_status == 7
    monkeypatch.setattr(host, "end_stub", end_stub)
    assert pod.call("Delete", id="pod1").exit_status == 7
    assert_gone(pod)


def test_the_end_of_the_vm_is_told_for_execs_first(pod: Pod) -> None:
    """Running execs end with 137 before their container; one that was only added can still be deleted."""
    pod.run("pod1", "sleep")
    pod.exec("pod1", "e1", "sleep")
    pod.exec("pod1", "e2", "sleep")
    pod.call("Start", id="pod1", exec_id="e1")
    pod.machine.die()
    assert pod.call("Wait", id="pod1", timeout=5).exit_status == 137
    pod.events.wait_for("exit", 2)
    exits = [(m.id, m.exit_status) for topic, m in pod.events.received if topic == "/tasks/exit"]
    assert exits == [("e1", 137), ("pod1", 137)]
    for exec_id in ("e1", "e2"):
        pod.call("Delete", id="pod1", exec_id=exec_id)


def test_a_pending_wait_ends_with_the_vm(pod: Pod) -> None:
    """A Wait that was there before the VM died answers too."""
    pod.run("pod1", "sleep")
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(pod.call("Wait", id="pod1").exit_status))
    waiter.start()
    time.sleep(0.1)
    pod.machine.die()
    waiter.join(5)
    assert got == [137]


def test_output_before_the_death_arrives_and_ends(pod: Pod) -> None:
    """What the process had written reaches the client, whose fifo then ends."""
    out = pod.output("out")
    pod.run("pod1", "sleep", stdout=out.path)
    pod.guest.processes["pod1", "pod1"].write(b"last words")
    pod.machine.die()
    assert out.read_all() == b"last words"


def test_verbs_after_the_death_are_refused_with_its_reason(pod: Pod) -> None:
    """Exec and Stats of a dead pod fail with a code, not with a time-out."""
    pod.run("pod1", "sleep")
    pod.machine.die()
    pod.call("Wait", id="pod1")
    for method in ("Stats", "Pause"):
        with pytest.raises(RpcError) as caught:
            pod.call(method, id="pod1")
        assert caught.value.code == status.FAILED_PRECONDITION


def test_a_boot_that_fails_says_why_and_leaves_nothing(pod: Pod) -> None:
    """The guest's last lines reach the engine; no mount, stub or state stays; the same id works next time."""
    panic = "Kernel panic: no init"
    pod.factory.fail = BootError("boot", "no hello", console_tail=panic, vmm_stderr="qemu: bad")
    with pytest.raises(RpcError, match=r"Kernel panic: no init.*qemu: bad") as caught:
        pod.create("pod1", "sleep")
    assert caught.value.code == status.UNAVAILABLE
    assert_gone(pod)
    with pytest.raises(RpcError):
        pod.call("State", id="pod1")
    pod.factory.fail = None
    pod.run("pod1", "exit", "0")
    assert pod.call("Wait", id="pod1").exit_status == 0


def test_a_create_that_the_guest_refuses_leaves_nothing(pod: Pod) -> None:
    """The guest's words and code reach the engine; the root filesystem is unmounted; nothing is told."""
    source = pod.directory / "src"
    (source / "bin").mkdir(parents=True)
    mount = {"type": "bind", "source": str(source), "options": ["rbind", "rw"]}
    pod.run("pod1", "sleep", spec=SANDBOX)
    pod.guest.refuse["CreateContainer"] = RpcError(status.INVALID_ARGUMENT, "no such file: /bin/nope")
    with pytest.raises(RpcError, match="/bin/nope") as caught:
        pod.create("c2", "nope", rootfs=[mount], spec=MEMBER)
    assert caught.value.code == status.INVALID_ARGUMENT
    assert not mounts_of(pod.directory / "b")
    pod.events.wait_for("start")
    assert pod.events.topics() == ["create", "start"]
    assert "c2" not in pod.machine.share.entries


def test_the_root_filesystem_is_mounted_and_unmounted(pod: Pod) -> None:
    """CreateTaskRequest.rootfs appears at bundle/rootfs for the share and is gone after Delete."""
    source = pod.directory / "src"
    (source / "bin").mkdir(parents=True)
    mount = {"type": "bind", "source": str(source), "options": ["rbind", "rw"]}
    pod.run("pod1", "sleep", rootfs=[mount])
    rootfs = pod.directory / "b/pod1/rootfs"
    assert mounts_of(pod.directory / "b") == [str(rootfs)] and (rootfs / "bin").is_dir()
    assert pod.machine.share.entries["pod1"] == [str(rootfs)]
    pod.call("Kill", id="pod1", signal=9)
    pod.call("Wait", id="pod1")
    pod.call("Delete", id="pod1")
    assert_gone(pod)


def test_a_guest_that_never_answers_does_not_block_kill_and_state(pod: Pod) -> None:
    """While Start hangs in the guest, State, Pids and Connect answer at once, and Kill ends the container."""
    pod.create("pod1", "sleep")
    pod.guest.silent.add("StartContainer")
    starter = threading.Thread(target=start_in_vain, args=(pod,))
    starter.start()
    time.sleep(0.1)
    began = time.monotonic()
    pod.call("State", id="pod1")
    pod.call("Pids", id="pod1")
    pod.call("Connect", id="pod1")
    assert time.monotonic() - began < 1
    pod.call("Kill", id="pod1", signal=9)
    starter.join(10)
    assert pod.call("Wait", id="pod1", timeout=8).exit_status == 137


def test_the_pause_container_takes_the_others_with_it(pod: Pod) -> None:
    """The others' exits are told before the sandbox container's; all can be deleted, then the VM goes."""
    pod.run("pod1", "sleep", spec=SANDBOX)
    for name in ("c1", "c2"):
        pod.run(name, "sleep", spec=MEMBER)
    pod.call("Kill", id="pod1", signal=9)
    pod.events.wait_for("exit", 3)
    exits = [message.id for topic, message in pod.events.received if topic == "/tasks/exit"]
    assert sorted(exits[:2]) == ["c1", "c2"] and exits[2] == "pod1"
    for name in ("c1", "c2", "pod1"):
        pod.call("Delete", id=name)
    assert_gone(pod)
    assert pod.machine.closed


def test_a_container_restarts_in_a_living_pod(pod: Pod) -> None:
    """Deleting the last member leaves the VM; the same id can be created again in the same VM."""
    pod.run("pod1", "sleep", spec=SANDBOX)
    for _ in range(2):
        pod.run("c1", "exit", "3", spec=MEMBER)
        assert pod.call("Wait", id="c1").exit_status == 3
        pod.call("Delete", id="c1")
    assert len(pod.factory.machines) == 1 and not pod.machine.closed


def test_files_of_others_cannot_join_a_pod_that_had_none(pod: Pod) -> None:
    """Its guest may keep for good what it reads; a container whose files are its own is welcome."""
    for name in ("upper", "work", "lower"):
        (pod.directory / name).mkdir()
    paths = ",".join(f"{name}dir={pod.directory / name}" for name in ("upper", "work", "lower"))
    overlay = [{"type": "overlay", "source": "overlay", "options": [paths]}]
    pod.run("pod1", "sleep", rootfs=overlay)
    joining = {"annotations": {"io.containerd.runc.v2.group": "pod1"}}
    volume = {"destination": "/v", "type": "bind", "source": str(pod.directory), "options": ["rbind"]}
    with pytest.raises(RpcError, match="brings files that others may change") as refused:
        pod.create("c1", "sleep", spec=joining | {"mounts": [volume]}, rootfs=overlay)
    assert refused.value.code == status.UNIMPLEMENTED
    with pytest.raises(RpcError, match="brings files that others may change"):
        pod.create("c2", "sleep", spec=joining)
    pod.run("c3", "sleep", spec=joining, rootfs=overlay)
    assert set(pod.machine.share.entries) == {"pod1", "c3"}


def slow_machine(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A machine that does not end before the event is set."""
    may_end = threading.Event()
    close = pod.machine.close

    def close_late() -> None:
        may_end.wait(10)
        close()

    monkeypatch.setattr(pod.machine, "close", close_late)
    return may_end


def test_delete_does_not_wait_for_the_end_of_the_machine(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest is not asked to clear up before it is killed. The state, and its lock, stay until all has gone."""
    pod.run("pod1", "exit", "3")
    pod.call("Wait", id="pod1")
    may_end = slow_machine(pod, monkeypatch)
    assert pod.call("Delete", id="pod1", timeout=5).exit_status == 3
    assert not pod.guest.called("RemoveContainer")
    (state,) = (pod.directory / "state/pods").glob("*/*")
    assert store.is_alive(str(state))
    ending = threading.Thread(target=pod.sandbox.end)
    ending.start()
    ending.join(0.2)
    assert ending.is_alive(), "the process does not end before its machine has"
    may_end.set()
    ending.join(5)
    assert not ending.is_alive() and not state.exists()


def test_delete_waits_where_the_engine_takes_the_network_away_next(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links in a namespace that the engine gave are let go of before it knows of the deletion."""
    netns = stub.new_netns()
    path = f"/proc/{os.getpid()}/fd/{netns}"
    namespaces = [{"type": "pid"}, {"type": "network", "path": path}, {"type": "mount"}]
    pod.run("pod1", "exit", "3", spec={"linux": {"namespaces": namespaces}})
    pod.call("Wait", id="pod1")
    may_end = slow_machine(pod, monkeypatch)
    deleting = threading.Thread(target=lambda: pod.call("Delete", id="pod1"))
    deleting.start()
    deleting.join(0.2)
    assert deleting.is_alive()
    may_end.set()
    deleting.join(5)
    os.close(netns)
    assert not deleting.is_alive()
    assert not glob.glob(f"{pod.directory}/state/pods/*/*")


def test_a_guest_that_may_have_unsaved_data_is_asked_to_clear_up(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on a writable disk is unmounted before the VM is killed."""
    pod.run("pod1", "exit", "3")
    pod.call("Wait", id="pod1")
    monkeypatch.setattr(pod.machine.files, "unsaved", True)
    pod.call("Delete", id="pod1")
    assert pod.guest.called("RemoveContainer")


def test_a_host_network_is_refused(pod: Pod) -> None:
    """A spec without a network namespace asks for the host's: refused at Create, clearly."""
    linux = {"linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]}}
    with pytest.raises(RpcError, match="host's network") as caught:
        pod.create("pod1", "sleep", spec=linux)
    assert caught.value.code == status.UNIMPLEMENTED
    assert_gone(pod)


def test_a_failing_hook_fails_create(pod: Pod) -> None:
    """A createRuntime hook gets the state on stdin; its failure is the error of Create and leaves nothing."""
    seen = pod.directory / "seen"
    good = {"path": "/bin/dd", "args": ["dd", f"of={seen}", "status=none"]}
    hooks = {"createRuntime": [good, {"path": "/bin/false"}]}
    with pytest.raises(RpcError, match=r"hooks\.create_runtime\[1\]"):
        pod.create("pod1", "sleep", spec={"hooks": hooks})
    assert b'"status": "creating"' in seen.read_bytes() and b'"id": "pod1"' in seen.read_bytes()
    assert_gone(pod)


def test_a_bad_spec_names_its_field(pod: Pod) -> None:
    """INVALID_ARGUMENT with the path of the field."""
    for changes, field in (
        ({"process": {"args": [], "cwd": "/"}}, "process.args"),
        ({"root": {"path": 5}}, "root.path"),
        ({"process": {"args": ["x"], "cwd": "rel"}}, "process.cwd"),
    ):
        with pytest.raises(RpcError, match=field) as caught:
            pod.create("pod1", "sleep", spec=changes)
        assert caught.value.code == status.INVALID_ARGUMENT
