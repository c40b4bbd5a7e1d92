"""The task API as engines use it, against a guest that is played: one container, execs, streams, events."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.ttrpc import status
from agent.ttrpc.status import RpcError
from shim import paths
from shim.task import autoremove, deleted, service
from shim.task.api import metrics_pb2, task_pb2
from shim.task.service import TaskService
from tests.framework.containerd import short_directory
from tests.framework.taskpod import NAMESPACE, Pod, alive

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and cgroups")


@pytest.fixture
def pod() -> Iterator[Pod]:
    """A pod process with a fake guest."""
    with short_directory() as directory:
        pod = Pod(directory)
        yield pod
        pod.close()


def code_of(call: Any, *args: Any, **fields: Any) -> int:
    """The status code with which a call is refused."""
    with pytest.raises(RpcError) as caught:
        call(*args, **fields)
    return caught.value.code


def test_a_container_lives_and_tells_its_events_in_order(pod: Pod) -> None:
    """create, start, exit and delete come in this order with the same pid, status and time."""
    pid = pod.run("pod1", "exit", "7")
    waited = pod.call("Wait", id="pod1")
    reply = pod.call("Delete", id="pod1")
    gone = pod.events.wait_for("delete")
    assert pod.events.topics() == ["create", "start", "exit", "delete"]
    assert (waited.exit_status, reply.exit_status, gone.exit_status) == (7, 7, 7)
    assert waited.exited_at == reply.exited_at == gone.exited_at
    assert reply.pid == gone.pid == pid
    assert abs(waited.exited_at.seconds - time.time()) < 10


def test_the_pid_is_a_living_host_process_that_ends_with_the_container(pod: Pod) -> None:
    """Create answers the pid of a living process outside; it is reaped before the exit is told."""
    pid = pod.run("pod1", "sleep")
    assert alive(pid) and pod.call("Pids", id="pod1").processes[0].pid == pid
    pod.call("Kill", id="pod1", signal=9)
    pod.events.wait_for("exit")
    assert not Path(f"/proc/{pid}").exists()
    assert not pod.call("Pids", id="pod1").processes


def test_the_stub_is_in_the_network_namespace_of_the_pod(pod: Pod) -> None:
    """Engines configure /proc/PID/ns/net after Create: it is the pod's own, not the host's."""
    pid = pod.create("pod1", "sleep")
    assert os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino


def test_somebody_who_kills_the_stub_kills_the_container(pod: Pod) -> None:
    """SIGKILL of the host pid ends the container in the guest with 137."""
    pid = pod.run("pod1", "sleep")
    os.kill(pid, 9)
    assert pod.call("Wait", id="pod1").exit_status == 137


def test_state_tells_the_truth_in_every_state(pod: Pod) -> None:
    """CREATED, RUNNING, PAUSED, RUNNING, STOPPED, then NOT_FOUND."""
    pod.create("pod1", "sleep", stdin="", stdout="", terminal=False)
    seen = [pod.call("State", id="pod1").status]
    for method in ("Start", "Pause", "Resume"):
        pod.call(method, id="pod1")
        seen.append(pod.call("State", id="pod1").status)
    pod.call("Kill", id="pod1", signal=15)
    pod.call("Wait", id="pod1")
    state = pod.call("State", id="pod1")
    assert [*seen, state.status] == [
        task_pb2.CREATED, task_pb2.RUNNING, task_pb2.PAUSED, task_pb2.RUNNING, task_pb2.STOPPED
    ]  # fmt: skip
    assert state.exit_status == 143 and state.exited_at.seconds
    pod.call("Delete", id="pod1")
    assert code_of(pod.call, "State", id="pod1") == status.NOT_FOUND


def test_output_of_a_short_process_is_complete_and_ends(pod: Pod) -> None:
    """All output reaches the fifo, whose end the client sees after the exit."""
    out = pod.output("out")
    pod.run("pod1", "echo", "hello", stdout=out.path)
    assert out.read_all() == b"hello\n"


def test_input_flows_to_the_end_of_a_large_stream(pod: Pod) -> None:
    """4 MiB through stdin and back arrive unchanged; CloseIO is the end of input, not the client's close."""
    stdin, out = pod.fifo("in"), pod.output("out")
    pod.run("pod1", "cat", stdin=stdin, stdout=out.path)
    data = os.urandom(1 << 22)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(out.read_all(20)))
    reader.start()
    with open(stdin, "wb") as stream:
        stream.write(data)
    time.sleep(0.2)
    assert pod.call("State", id="pod1").status == task_pb2.RUNNING
    pod.call("CloseIO", id="pod1", stdin=True)
    reader.join(20)
    assert got == [data]
    assert pod.call("Wait", id="pod1").exit_status == 0


def test_a_second_client_may_open_the_same_stdin(pod: Pod) -> None:
    """A client that detaches does not end the input; the next one goes on."""
    stdin, out = pod.fifo("in"), pod.output("out")
    pod.run("pod1", "cat", stdin=stdin, stdout=out.path)
    for word in (b"one ", b"two"):
        with open(stdin, "wb") as stream:
            stream.write(word)
        time.sleep(0.1)
    pod.call("CloseIO", id="pod1", stdin=True)
    assert out.read_all() == b"one two"


def test_close_io_is_allowed_before_the_start_and_twice(pod: Pod) -> None:
    """What is in the fifo still reaches an exec that starts after CloseIO."""
    pod.run("pod1", "sleep")
    stdin, out = pod.fifo("in"), pod.output("out")
    pod.exec("pod1", "e1", "cat", stdin=stdin, stdout=out.path)
    keep = os.open(stdin, os.O_RDWR)
    os.write(keep, b"early")
    pod.call("CloseIO", id="pod1", exec_id="e1", stdin=True)
    pod.call("CloseIO", id="pod1", exec_id="e1", stdin=True)
    pod.call("Start", id="pod1", exec_id="e1")
    os.close(keep)
    assert out.read_all() == b"early"
    assert pod.call("Wait", id="pod1", exec_id="e1").exit_status == 0


def test_streams_of_an_agent_without_connections(pod: Pod) -> None:
    """Kata's agent knows only ReadStdout and WriteStdin: the same bytes, and the same ends."""
    pod.factory.streams_by_rpc = True
    stdin, out = pod.fifo("in"), pod.output("out")
    pod.run("pod1", "cat", stdin=stdin, stdout=out.path)
    data = os.urandom(5000)
    with open(stdin, "wb") as stream:
        stream.write(data)
    pod.call("CloseIO", id="pod1", stdin=True)
    assert out.read_all() == data
    assert pod.call("Wait", id="pod1").exit_status == 0
    assert not pod.guest.called("CreateContainer")[0].stdout_port


def test_an_exec_has_its_own_life_and_events(pod: Pod) -> None:
    """exec-added, exec-started and exit carry the exec's id; no delete event; Delete gives its status."""
    pod.run("pod1", "sleep")
    pod.exec("pod1", "e1", "exit", "6")
    assert pod.call("State", id="pod1", exec_id="e1").status == task_pb2.CREATED
    pod.call("Start", id="pod1", exec_id="e1")
    assert pod.call("Wait", id="pod1", exec_id="e1").exit_status == 6
    assert pod.call("Delete", id="pod1", exec_id="e1").exit_status == 6
    ended = pod.events.wait_for("exit")
    assert (ended.container_id, ended.id, ended.exit_status) == ("pod1", "e1", 6)
    assert pod.events.topics() == ["create", "start", "exec-added", "exec-started", "exit"]
    assert code_of(pod.call, "State", id="pod1", exec_id="e1") == status.NOT_FOUND


def test_an_exec_without_its_program_fails_at_start_and_tells_nothing(pod: Pod) -> None:
    """Exec succeeds, Start answers the guest's words; neither exec-started nor exit is told; Delete works."""
    pod.run("pod1", "sleep")
    pod.exec("pod1", "e2", "missing")
    with pytest.raises(RpcError, match="executable file not found"):
        pod.call("Start", id="pod1", exec_id="e2")
    pod.call("Delete", id="pod1", exec_id="e2")
    pod.call("Pause", id="pod1")
    pod.events.wait_for("paused")
    assert pod.events.topics() == ["create", "start", "exec-added", "paused"]


def test_a_deleted_exec_that_never_started_has_status_0(pod: Pod) -> None:
    """Measured at runc's shim."""
    pod.run("pod1", "sleep")
    pod.exec("pod1", "e1", "sleep")
    assert pod.call("Delete", id="pod1", exec_id="e1").exit_status == 0


def test_execs_end_and_are_told_before_their_container(pod: Pod) -> None:
    """When init ends, what else ran in the container ends with it, each exit exactly once, init's last."""
    pod.run("pod1", "sleep")
    for name in ("e1", "e2"):
        pod.exec("pod1", name, "sleep")
        pod.call("Start", id="pod1", exec_id=name)
    pod.call("Kill", id="pod1", signal=15)
    last = pod.events.wait_for("exit", 3)
    ids = [message.id for topic, message in pod.events.received if topic == "/tasks/exit"]
    assert sorted(ids[:2]) == ["e1", "e2"] and ids[2:] == ["pod1"]
    assert last.exit_status == 143


def test_an_exit_is_told_before_the_delete(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for the end may delete before it is told, and the events are in order all the same."""
    tell = TaskService.exited

    def slow(self: TaskService, *words: Any) -> None:
        time.sleep(0.3)
        tell(self, *words)

    monkeypatch.setattr(TaskService, "exited", slow)
    pod.run("pod1", "exit", "0")
    pod.call("Wait", id="pod1")
    pod.call("Delete", id="pod1")
    pod.events.wait_for("delete")
    assert pod.events.topics() == ["create", "start", "exit", "delete"]


def test_an_exit_never_comes_before_its_start(pod: Pod) -> None:
    """Processes that end at once still tell start before exit, every time."""
    for number in range(10):
        pod.run("pod1", "exit", "0")
        pod.call("Wait", id="pod1")
        pod.call("Delete", id="pod1")
        pod.events.wait_for("delete", number + 1)
    assert pod.events.topics() == ["create", "start", "exit", "delete"] * 10


def test_out_of_memory_is_told_before_the_exit(pod: Pod) -> None:
    """TaskOOM once, then the exit; the file `oom` lies in the bundle for CRI-O."""
    pod.run("pod1", "oom")
    pod.events.wait_for("exit")
    assert pod.events.topics() == ["create", "start", "oom", "exit"]
    assert (pod.directory / "b/pod1/oom").exists()


def test_out_of_memory_is_found_even_if_the_guest_did_not_say(pod: Pod) -> None:
    """A container killed by SIGKILL whose cgroup counted a kill for memory ran out of memory."""
    pod.run("pod1", "sleep")
    pod.guest.oom_kills["pod1"] = 1
    pod.call("Kill", id="pod1", signal=9)
    pod.events.wait_for("exit")
    assert pod.events.topics() == ["create", "start", "oom", "exit"]


def test_a_size_that_comes_early_is_kept(pod: Pod) -> None:
    """ResizePty before the exec's Start reaches the guest after it."""
    pod.run("pod1", "sleep")
    pod.exec("pod1", "e1", "sleep", terminal=True)
    pod.call("ResizePty", id="pod1", exec_id="e1", width=123, height=45)
    assert not pod.guest.called("TtyWinResize")
    pod.call("Start", id="pod1", exec_id="e1")
    resize = pod.guest.called("TtyWinResize")[0]
    assert (resize.exec_id, resize.column, resize.row) == ("e1", 123, 45)


def test_resize_without_a_terminal_is_fine(pod: Pod) -> None:
    """No error, and the guest is not asked."""
    pod.run("pod1", "sleep")
    pod.call("ResizePty", id="pod1", width=1, height=1)
    assert not pod.guest.called("TtyWinResize")


def test_a_paused_container_dies_of_sigkill(pod: Pod) -> None:
    """It is resumed so that it can."""
    pod.run("pod1", "sleep")
    pod.call("Pause", id="pod1")
    pod.call("Kill", id="pod1", signal=9)
    assert pod.call("Wait", id="pod1").exit_status == 137
    assert pod.guest.called("ResumeContainer")


def test_kill_all_reaches_every_process(pod: Pod) -> None:
    """all=true becomes the signal for the whole container."""
    pod.run("pod1", "sleep")
    pod.call("Kill", id="pod1", signal=9, all=True)
    assert pod.guest.called("SignalProcess")[0].exec_id == ""


def test_signal_0_asks_for_life(pod: Pod) -> None:
    """CRI-O's liveness probe: fine for a living process, NOT_FOUND for an ended one, and the guest is not
    asked.
    """
    pod.run("pod1", "sleep")
    pod.call("Kill", id="pod1", signal=0)
    assert not pod.guest.called("SignalProcess")
    pod.call("Kill", id="pod1", signal=9)
    pod.call("Wait", id="pod1")
    assert code_of(pod.call, "Kill", id="pod1", signal=0) == status.NOT_FOUND


def test_kill_in_state_created_ends_wait(pod: Pod) -> None:
    """SIGKILL before Start: Wait answers 137 and an exit is told without a start."""
    pod.create("pod1", "sleep")
    pod.call("Kill", id="pod1", signal=9)
    assert pod.call("Wait", id="pod1", timeout=5).exit_status == 137
    pod.events.wait_for("exit")
    assert pod.events.topics() == ["create", "exit"]


def test_delete_in_state_created_works(pod: Pod) -> None:
    """A container that never ran can be deleted; its Wait ends."""
    pod.create("pod1", "sleep")
    pod.call("Delete", id="pod1")
    assert code_of(pod.call, "Delete", id="pod1") == status.NOT_FOUND
    pod.events.wait_for("delete")
    assert pod.machine.closed


def test_stats_have_every_part(pod: Pod) -> None:
    """Metrics of cgroup v2 with every sub-message that CRI-O dereferences; refused after the end."""
    pod.create("pod1", "sleep")
    reply = pod.call("Stats", id="pod1")
    assert reply.stats.type_url == "io.containerd.cgroups.v2.Metrics"
    measured = metrics_pb2.Metrics.FromString(reply.stats.value)
    assert all(measured.HasField(name) for name in ("pids", "cpu", "memory", "io", "memory_events"))
    assert measured.memory.usage == 4096
    pod.call("Delete", id="pod1")
    assert code_of(pod.call, "Stats", id="pod1") == status.NOT_FOUND


def test_update_reaches_the_guest(pod: Pod) -> None:
    """The Any holds LinuxResources as JSON; a wrong type in it is refused with the field's path."""
    pod.run("pod1", "sleep")
    good = {"value": json.dumps({"memory": {"limit": 1 << 26}}).encode()}
    pod.call("Update", id="pod1", resources=good)
    assert pod.guest.called("UpdateContainer")[0].resources.Memory.Limit == 1 << 26
    with pytest.raises(RpcError, match=r"linux\.resources\.memory\.limit"):
        pod.call("Update", id="pod1", resources={"value": b'{"memory": {"limit": "much"}}'})


def test_codes_of_the_reference(pod: Pod) -> None:
    """The refusals that engines tell apart carry the codes of runc's shim."""
    assert code_of(pod.call, "Start", id="nobody") == status.NOT_FOUND
    pod.run("pod1", "sleep")
    pod.exec("pod1", "e1", "sleep")
    bundle = str(pod.directory / "b/pod1")
    assert code_of(pod.call, "Create", id="pod1", bundle=bundle) == status.ALREADY_EXISTS
    assert code_of(pod.exec, "pod1", "e1", "sleep") == status.ALREADY_EXISTS
    assert code_of(pod.call, "Kill", id="pod1", exec_id="e1", signal=15) == status.FAILED_PRECONDITION
    assert code_of(pod.call, "Delete", id="pod1") == status.FAILED_PRECONDITION
    assert code_of(pod.call, "Resume", id="pod1") == status.FAILED_PRECONDITION
    assert code_of(pod.call, "Checkpoint", id="pod1") == status.UNIMPLEMENTED
    pod.call("Kill", id="pod1", signal=9)
    pod.call("Wait", id="pod1")
    assert code_of(pod.call, "Kill", id="pod1", signal=9) == status.NOT_FOUND
    assert code_of(pod.call, "Start", id="pod1", exec_id="e1") == status.FAILED_PRECONDITION
    assert code_of(pod.call, "Pause", id="pod1") == status.FAILED_PRECONDITION


def test_connect_and_shutdown_never_fail(pod: Pod) -> None:
    """Connect answers for unknown ids too; Shutdown ends the process only when no task is left."""
    assert pod.call("Connect", id="nobody").shim_pid == os.getpid()
    pid = pod.run("pod1", "sleep")
    assert pod.call("Connect", id="pod1").task_pid == pid
    pod.call("Shutdown", id="pod1")
    assert not pod.shut_down.is_set()
    pod.call("Kill", id="pod1", signal=9)
    pod.call("Wait", id="pod1")
    pod.call("Delete", id="pod1")
    pod.call("Shutdown", id="pod1")
    assert pod.shut_down.wait(5)


def test_shutdown_leaves_the_answer_for_the_delete_that_follows(pod: Pod) -> None:
    """How the container ended, in its bundle: the last one's when nothing of the pod is left, others' at their Delete."""
    pod.run("pod1", "sleep")
    pod.run("c2", "sleep")
    replies = {}
    for name in ("c2", "pod1"):
        pod.call("Kill", id=name, signal=9)
        pod.call("Wait", id=name)
        replies[name] = pod.call("Delete", id=name)
        left = pod.directory / "b" / name / paths.ANSWER_FILE
        assert left.exists() == (name == "c2")
        pod.call("Shutdown", id=name)
        assert task_pb2.DeleteResponse.FromString(left.read_bytes()) == replies[name]
        assert replies[name].exit_status == 137
    assert not os.path.exists(paths.sandbox_dir("pod1", NAMESPACE))


def test_no_answer_is_left_while_something_is(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does not end in time, a root that is still mounted, a bundle that has gone: `delete` looks by itself."""
    monkeypatch.setattr(service, "TAKE_DOWN", 0.05)
    go_on = threading.Event()
    pod.run("pod1", "sleep")
    monkeypatch.setattr(pod.machine, "close", lambda: go_on.wait(10))
    pod.call("Kill", id="pod1", signal=9)
    pod.call("Wait", id="pod1")
    pod.call("Delete", id="pod1")
    pod.call("Shutdown", id="pod1")
    assert pod.shut_down.is_set()
    assert not (pod.directory / "b/pod1" / paths.ANSWER_FILE).exists()
    go_on.set()
    deleted.leave(str(pod.directory / "none"), b"x")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(pod.directory / "b/pod1/rootfs"))
    deleted.leave(str(pod.directory / "b/pod1"), b"x")
    assert not (pod.directory / "b/pod1" / paths.ANSWER_FILE).exists()


def test_auto_remove_takes_everything_away(pod: Pod) -> None:
    """`--rm`: after the end the task, the bundle and the process go without anybody asking."""
    out = pod.output("out")
    pod.run("pod1", "echo", "bye", stdout=out.path, spec={"annotations": {"io.hako.auto-remove": "true"}})
    assert out.read_all() == b"bye\n"
    assert pod.shut_down.wait(5)
    assert not (pod.directory / "b/pod1").exists()
    assert pod.machine.closed and pod.events.topics()[-2:] == ["exit", "delete"]


def test_a_container_made_by_hand_that_is_kept(pod: Pod) -> None:
    """Without `--rm`: task and process end too, but the bundle stays, and says how the container ended."""
    from shim.byhand import aftercare, registry

    container = registry.new("kept")
    registry.save(container)
    annotations = {"annotations": {"io.hako.auto-remove": "false"}}
    pod.run(container.id, "exit", "3", spec=annotations)
    assert pod.shut_down.wait(5)
    assert pod.machine.closed and (pod.directory / "b" / container.id).exists()
    ended = aftercare.exit_of(registry.find("kept"))
    assert ended is not None and ended[0] == 3


def test_a_container_made_by_hand_that_nobody_starts(pod: Pod) -> None:
    """Its `hako run` was killed after Create: it is known as such, and goes; an engine's container is waited for."""
    pod.create("pod1", "sleep", spec={"annotations": {"io.hako.auto-remove": "true"}})
    assert autoremove.abandoned(pod.sandbox.containers.values())
    pod.sandbox.abandon()
    assert pod.shut_down.wait(5) and pod.machine.closed


def test_an_engines_container_is_never_abandoned(pod: Pod) -> None:
    """Days may be between its Create and its Start; nor is one that runs."""
    pod.create("pod1", "sleep")
    assert not autoremove.abandoned(pod.sandbox.containers.values())
    pod.call("Delete", id="pod1")
    pod.run("pod1", "sleep", spec={"annotations": {"io.hako.auto-remove": "true"}})
    assert not autoremove.abandoned(pod.sandbox.containers.values())
