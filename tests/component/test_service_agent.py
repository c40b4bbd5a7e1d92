"""The whole agent as a process: a host's calls over ttrpc, real containers in namespaces."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.api import agent_pb2, csi_pb2, empty_pb2, oci_pb2
from agent.ttrpc import status
from agent.ttrpc.status import RpcError
from tests.framework.agentcalls import alive, memory_of, until
from tests.framework.agentproc import AgentProcess
from tests.framework.box import bind
from tests.framework.inguest import need_busybox, need_root

pytestmark = [need_root, need_busybox]

MAX_RSS_KIB = 20 << 10


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path) as made:
        made.create_sandbox()
        yield made


def refused(code: int) -> pytest.RaisesExc[RpcError]:
    return pytest.raises(RpcError, check=lambda error: error.code == code)


# --- stdio
# ----------------------------------------------------------------------------------------------------


def test_container_by_streams(agent: AgentProcess) -> None:
    """Input, both outputs and the exit code of a container whose stdio are raw streams."""
    streams = agent.streams()
    agent.start("c1", "cat; echo err >&2; exit 7", streams)
    streams.write(b"hello\n")
    streams.close_stdin()
    assert streams.read_all() == b"hello\n"
    assert streams.read_all("stderr") == b"err\n"
    assert agent.wait("c1") == 7
    agent.do("RemoveContainer", container_id="c1")
    with refused(status.NOT_FOUND):
        agent.wait("c1")


def test_container_by_rpc(agent: AgentProcess) -> None:
    """The same by Kata's WriteStdin, ReadStdout, ReadStderr and CloseStdin."""
    agent.start("c1", "cat; echo err >&2; exit 7")
    request = agent_pb2.WriteStreamRequest(container_id="c1", data=b"hello\n")
    assert agent.call("WriteStdin", request, agent_pb2.WriteStreamResponse).len == 6
    agent.do("CloseStdin", container_id="c1")
    assert agent.read_all("ReadStdout", "c1") == b"hello\n"
    assert agent.read_all("ReadStderr", "c1", "c1") == b"err\n"
    assert agent.wait("c1") == 7


def test_large_output_arrives_whole(agent: AgentProcess) -> None:
    """8 MiB through a stream and through a pipe of the container, byte for byte, while the agent answers."""
    streams = agent.streams()
    agent.start("c1", "head -c 8388608 /dev/zero | cat; echo end", streams)
    assert agent.check() == 1
    assert streams.read_all() == bytes(8 << 20) + b"end\n"
    assert agent.wait("c1") == 0


def test_close_stdin_ends_a_stream_after_its_data(agent: AgentProcess) -> None:
    """CloseStdin by RPC loses nothing that was written to the stream before."""
    streams = agent.streams()
    agent.start("c1", "wc -c", streams)
    streams.write(bytes(100_000))
    agent.do("CloseStdin", container_id="c1")
    assert streams.read_all() == b"100000\n"


def test_missing_stream_is_dev_null(agent: AgentProcess) -> None:
    """With only stdout connected, stdin is empty and stderr goes nowhere."""
    streams = agent.streams("stdout")
    agent.start("c1", "cat; echo lost >&2; readlink /proc/self/fd/2", streams)
    assert streams.read_all() == b"/dev/null\n"
    assert agent.wait("c1") == 0


def test_terminal_with_its_size(agent: AgentProcess) -> None:
    """A terminal has its size from the spec, a new one from TtyWinResize, and no stderr stream."""
    streams = agent.streams("stdin", "stdout")
    changes = {"terminal": True, "consoleSize": {"height": 24, "width": 80}}
    agent.start("c1", "stty size; tty; read x; stty size; exit 3", streams, process=changes)
    assert b"24 80\r\n/dev/pts/0\r\n" in streams.read_until(b"pts/0\r\n")
    agent.do("TtyWinResize", container_id="c1", row=50, column=132)
    streams.write(b"\n")
    assert b"50 132\r\n" in streams.read_all()
    assert agent.wait("c1") == 3


def test_resize_between_create_and_start_counts(agent: AgentProcess) -> None:
    """A size that comes before the process runs is what it sees."""
    streams = agent.streams("stdin", "stdout")
    agent.create("c1", "stty size", streams, process={"terminal": True})
    agent.do("TtyWinResize", container_id="c1", row=10, column=20)
    agent.do("StartContainer", container_id="c1")
    assert streams.read_all() == b"10 20\r\n"


def test_resize_without_terminal_is_refused(agent: AgentProcess) -> None:
    """TtyWinResize of a process with pipes is UNIMPLEMENTED; an impossible size INVALID_ARGUMENT."""
    agent.start("c1", "sleep 60")
    with refused(status.UNIMPLEMENTED):
        agent.do("TtyWinResize", container_id="c1", row=10, column=20)
    with refused(status.INVALID_ARGUMENT):
        agent.do("TtyWinResize", container_id="c1", row=1 << 16, column=20)


def test_terminal_by_rpc(agent: AgentProcess) -> None:
    """A terminal without streams: output by ReadStdout, ReadStderr ends at once."""
    agent.start("c1", "echo out; echo err >&2", process={"terminal": True})
    assert agent.read_all("ReadStdout", "c1") == b"out\r\nerr\r\n"
    assert agent.read_all("ReadStderr", "c1") == b""


def test_unknown_stream_fails_the_request_and_leaves_nothing(agent: AgentProcess) -> None:
    """A port that nobody came with is INVALID_ARGUMENT, and the id is free again."""
    with refused(status.INVALID_ARGUMENT):
        agent.create("c1", "true", request={"stdout_port": 999})
    agent.start("c1", "true")
    assert agent.wait("c1") == 0


# --- processes
# ------------------------------------------------------------------------------------------------


def test_exec_has_its_own_stdio_and_status(agent: AgentProcess) -> None:
    """An exec runs in the container and is forgotten once its exit was told."""
    agent.start("c1", "sleep 60")
    streams = agent.streams()
    agent.exec("c1", "e1", "hostname; ps | wc -l; echo err >&2; exit 9", streams)
    assert streams.read_all().split()[0] == b"box"
    assert streams.read_all("stderr") == b"err\n"
    assert agent.wait("c1", "e1") == 9
    with refused(status.NOT_FOUND):
        agent.wait("c1", "e1")
    agent.exec("c1", "e1", "exit 1", agent.streams())
    assert agent.wait("c1", "e1") == 1


def test_exec_waits_by_several_callers(agent: AgentProcess) -> None:
    """Every WaitProcess that is pending gets the status."""
    agent.start("c1", "sleep 60")
    agent.exec("c1", "e1", "sleep 0.3; exit 5", agent.streams())
    request = agent_pb2.WaitProcessRequest(container_id="c1", exec_id="e1")
    waits = [agent.later("WaitProcess", request, agent_pb2.WaitProcessResponse) for _ in range(3)]
    assert [wait.get().status for wait in waits] == [5, 5, 5]


def test_exec_output_by_rpc_may_be_read_after_its_exit(agent: AgentProcess) -> None:
    """WaitProcess first, ReadStdout then: nothing is lost, and after the end the exec is gone."""
    agent.start("c1", "sleep 60")
    agent.exec("c1", "e1", "echo late")
    assert agent.wait("c1", "e1") == 0
    assert agent.read_all("ReadStdout", "c1", "e1") == b"late\n"
    assert agent.read_all("ReadStderr", "c1", "e1") == b""
    with refused(status.NOT_FOUND):
        agent.wait("c1", "e1")


def test_signals_reach_whom_they_name(agent: AgentProcess) -> None:
    """An exec alone, the init alone, or with "" and SIGKILL everyone; exited ones are no error."""
    agent.start("c1", "trap 'exit 44' TERM; while :; do sleep 0.05; done")
    agent.exec("c1", "e1", "sleep 60", agent.streams())
    agent.exec("c1", "e2", "sleep 60", agent.streams())
    agent.do("SignalProcess", container_id="c1", exec_id="e1", signal=9)
    assert agent.wait("c1", "e1") == 137
    time.sleep(0.2)
    agent.do("SignalProcess", container_id="c1", exec_id="c1", signal=15)
    assert agent.wait("c1") == 44
    assert agent.wait("c1", "e2") == 137
    agent.do("SignalProcess", container_id="c1", exec_id="", signal=9)
    agent.do("SignalProcess", container_id="c1", exec_id="c1", signal=15)
    with refused(status.NOT_FOUND):
        agent.do("SignalProcess", container_id="c1", exec_id="e2", signal=9)
    with refused(status.INVALID_ARGUMENT):
        agent.do("SignalProcess", container_id="c1", exec_id="", signal=99)


def test_wait_answers_again_until_the_container_is_removed(agent: AgentProcess) -> None:
    """The first process's status can be asked for more than once, also after it has exited."""
    agent.start("c1", "exit 4")
    assert [agent.wait("c1"), agent.wait("c1", "c1")] == [4, 4]


def test_killing_a_created_container_ends_its_wait(agent: AgentProcess) -> None:
    """A container that never started can be waited for, killed and removed."""
    agent.create("c1", "true")
    request = agent_pb2.WaitProcessRequest(container_id="c1")
    wait = agent.later("WaitProcess", request, agent_pb2.WaitProcessResponse)
    agent.do("SignalProcess", container_id="c1", exec_id="", signal=9)
    assert wait.get().status == 137
    agent.do("RemoveContainer", container_id="c1")


def test_program_that_is_not_there_fails_create(agent: AgentProcess) -> None:
    """A missing program is found at CreateContainer, by name, and nothing is left."""
    with pytest.raises(RpcError, match="nosuch") as caught:
        agent.create("c1", ["nosuch"])
    assert caught.value.code in (status.INTERNAL, status.NOT_FOUND, status.INVALID_ARGUMENT)
    agent.start("c1", "sleep 60")
    with pytest.raises(RpcError, match="nosuch"):
        agent.exec("c1", "e1", ["nosuch"])


def test_orphans_are_reaped(agent: AgentProcess) -> None:
    """A process whose parents are gone does not stay PID 1's zombie, and awaited ones keep their status."""
    agent.start("c1", "sleep 60")
    agent.exec("c1", "e1", "(sleep 0.2 &) ; exit 6", agent.streams())
    assert agent.wait("c1", "e1") == 6
    pid = agent.pid
    # What an exec leaves in a container's pid namespace is reaped there; a child of the agent's is made here.
    enter = ["nsenter", "--target", str(pid), "--mount", "--pid", "--", "sh", "-c", "sleep 0.1 & exec true"]
    os.spawnvp(os.P_WAIT, enter[0], enter)
    time.sleep(0.5)
    zombies = [
        child
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    ]
    assert zombies == []
    assert agent.check() == 1


# --- concurrency
# ----------------------------------------------------------------------------------------------


def test_long_polls_delay_nobody(agent: AgentProcess) -> None:
    """With WaitProcess, ReadStdout and GetOOMEvent pending, the same connection answers other calls."""
    agent.start("c1", "read x; echo done; exit 2")
    polls = [
        agent.later(
            "WaitProcess", agent_pb2.WaitProcessRequest(container_id="c1"), agent_pb2.WaitProcessResponse
        ),
        agent.later(
            "ReadStdout", agent_pb2.ReadStreamRequest(container_id="c1", len=9), agent_pb2.ReadStreamResponse
        ),
        agent.later("GetOOMEvent", agent_pb2.GetOOMEventRequest(), agent_pb2.OOMEvent),
    ]
    started = time.monotonic()
    assert agent.check() == 1
    assert time.monotonic() - started < 2
    assert not any(poll.arrived for poll in polls)
    request = agent_pb2.WriteStreamRequest(container_id="c1", data=b"\n")
    agent.call("WriteStdin", request, agent_pb2.WriteStreamResponse)
    assert polls[1].get().data == b"done\n"
    assert polls[0].get().status == 2
    assert not polls[2].arrived


def test_long_polls_of_a_lost_connection_are_dropped(agent: AgentProcess) -> None:
    """A caller that goes away loses its reads: data go to the next one who asks."""
    agent.start("c1", "read x; echo mine")
    other = agent.connect()
    request = agent_pb2.ReadStreamRequest(container_id="c1", len=100)
    other.call_async(
        "grpc.AgentService", "ReadStdout", request, agent_pb2.ReadStreamResponse, lambda m, e: None
    )
    assert agent.check() == 1
    other.close()
    time.sleep(0.2)
    write = agent_pb2.WriteStreamRequest(container_id="c1", data=b"\n")
    agent.call("WriteStdin", write, agent_pb2.WriteStreamResponse)
    assert agent.read_all("ReadStdout", "c1") == b"mine\n"


def test_stdin_that_nobody_reads_does_not_block(agent: AgentProcess) -> None:
    """A WriteStdin larger than the pipe waits; the agent goes on, and the process's end ends the wait."""
    agent.start("c1", "sleep 60")
    request = agent_pb2.WriteStreamRequest(container_id="c1", data=bytes(1 << 20))
    write = agent.later("WriteStdin", request, agent_pb2.WriteStreamResponse)
    assert agent.check() == 1
    assert not write.arrived
    agent.do("SignalProcess", container_id="c1", exec_id="", signal=9)
    assert write.get().len < 1 << 20


# --- the sandbox
# ----------------------------------------------------------------------------------------------


def test_containers_share_what_the_sandbox_has(agent: AgentProcess) -> None:
    """Two containers have the sandbox's uts and ipc namespaces, and their own pid namespaces."""
    links = "for n in uts ipc pid; do readlink /proc/self/ns/$n; done"
    first, second = agent.streams(), agent.streams()
    agent.start("c1", links + "; sleep 60", first)
    agent.start("c2", links, second)
    one = first.read_until(b"pid:").split()[:2]
    two = second.read_all().split()
    assert one == two[:2]
    pinned = Path(f"/proc/{agent.pid}/root/run/sandbox-ns/uts").stat().st_ino
    assert two[0] == b"uts:[%d]" % pinned


def test_pod_pid_namespace(agent: AgentProcess) -> None:
    """sandbox_pidns: later containers see the first one's processes; "container:ID" names one by itself."""
    agent.start("pause", "exec sleep 600", request={"sandbox_pidns": True})
    streams = agent.streams()
    agent.start("c1", "cat /proc/1/cmdline", streams, request={"sandbox_pidns": True})
    assert streams.read_all() == b"sleep\x00600\x00"
    streams = agent.streams()
    kinds = [{"type": "mount"}, {"type": "pid", "path": "container:pause"}]
    agent.start("c2", "cat /proc/1/cmdline", streams, linux={"namespaces": kinds})
    assert streams.read_all() == b"sleep\x00600\x00"
    with refused(status.NOT_FOUND):
        agent.create("c3", "true", linux={"namespaces": [{"type": "pid", "path": "container:nobody"}]})


def test_host_name_and_dns(tmp_path: Path) -> None:
    """CreateSandbox's host name is in the sandbox's uts namespace only; its DNS lines are resolv.conf."""
    with AgentProcess(tmp_path) as agent:
        before = os.uname().nodename
        agent.create_sandbox(hostname="pod-7", dns=["nameserver 192.0.2.1", "search example"])
        streams = agent.streams()
        agent.start("c1", "hostname", streams, hostname="")
        assert streams.read_all() == b"pod-7\n"
        resolv = Path(f"/proc/{agent.pid}/root/etc/resolv.conf").read_text()
        assert resolv == "nameserver 192.0.2.1\nsearch example\n"
        assert os.uname().nodename == before


def test_storages_are_shared_and_counted(agent: AgentProcess) -> None:
    """An ephemeral storage of two containers is one tmpfs, outlives them, and can be resized."""
    point = "/run/kata-containers/sandbox/ephemeral/cache"
    storage = agent_pb2.Storage(
        driver="ephemeral", source="tmpfs", fstype="tmpfs", mount_point=point, options=["size=1m"]
    )
    mounts = [bind(point, "/mnt")]
    for cid, script in (("c1", "echo kept > /mnt/f"), ("c2", "cat /mnt/f")):
        streams = agent.streams()
        agent.start(cid, script, streams, mounts=mounts, request={"storages": [storage]})
        output = streams.read_all()
        assert agent.wait(cid) == 0
        agent.do("RemoveContainer", container_id=cid)
    assert output == b"kept\n"
    request = agent_pb2.VolumeStatsRequest(volume_guest_path=point)
    assert agent.call("GetVolumeStats", request, csi_pb2.VolumeStatsResponse).usage[0].total == 1 << 20
    storage.options[:] = ["size=2m"]
    agent.do("UpdateEphemeralMounts", storages=[storage])
    assert agent.call("GetVolumeStats", request, csi_pb2.VolumeStatsResponse).usage[0].total == 2 << 20


def test_failed_storage_leaves_nothing(agent: AgentProcess) -> None:
    """When the second storage fails, the first is unmounted and the container id is free."""
    good = agent_pb2.Storage(
        driver="bind", source=str(agent.rootfs()), mount_point="/run/kata-containers/x", options=["rbind"]
    )
    bad = agent_pb2.Storage(driver="nosuch", mount_point="/run/kata-containers/y")
    with refused(status.UNIMPLEMENTED):
        agent.create("c1", "true", request={"storages": [good, bad]})
    mounts = Path(f"/proc/{agent.pid}/mounts").read_text()
    assert "/run/kata-containers/x" not in mounts
    agent.start("c1", "true")


def test_destroy_removes_everything_and_ends_the_agent(tmp_path: Path) -> None:
    """DestroySandbox is answered, every process is gone, and the agent ends by itself."""
    with AgentProcess(tmp_path, cgroups=True) as agent:
        agent.create_sandbox()
        agent.start("c1", "sleep 600 & exec sleep 601")
        agent.exec("c1", "e1", "sleep 602", agent.streams())
        request = agent_pb2.StatsContainerRequest(container_id="c1")
        until(lambda: len(agent.call("StatsContainer", request, agent_pb2.StatsContainerResponse).pids) == 3)
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        assert children
        agent.do("DestroySandbox")
        agent.client.close()
        assert agent.process.wait(5) == 0
        assert not any(alive(int(pid)) for pid in children)


def test_second_sandbox_is_refused_and_containers_need_one(tmp_path: Path) -> None:
    """CreateContainer before CreateSandbox is FAILED_PRECONDITION, CreateSandbox twice ALREADY_EXISTS."""
    with AgentProcess(tmp_path) as agent:
        with refused(status.FAILED_PRECONDITION):
            agent.create("c1", "true")
        agent.create_sandbox()
        with refused(status.ALREADY_EXISTS):
            agent.create_sandbox()


def test_calls_that_come_together_are_taken_in_their_order(tmp_path: Path) -> None:
    """The shim asks for the first container before the sandbox is there, and waits for both."""
    with AgentProcess(tmp_path) as agent:
        create = agent_pb2.CreateContainerRequest(container_id="c1", exec_id="c1", OCI=agent.spec("exit 5"))
        sandbox = agent_pb2.CreateSandboxRequest(sandbox_id="s", hostname="boxed")
        calls = [("CreateSandbox", sandbox), ("CreateContainer", create)]
        calls.append(("StartContainer", agent_pb2.StartContainerRequest(container_id="c1")))
        answers = [agent.later(method, request, empty_pb2.Empty) for method, request in calls]
        for answer in answers:
            answer.get()
        assert agent.wait("c1") == 5


def test_failed_sandbox_can_be_created_again(tmp_path: Path) -> None:
    """A CreateSandbox that fails gives everything back."""
    with AgentProcess(tmp_path) as agent:
        bad = agent_pb2.Storage(driver="nosuch", mount_point="/run/x")
        with refused(status.UNIMPLEMENTED):
            agent.create_sandbox(storages=[bad])
        assert not Path(f"/proc/{agent.pid}/root/run/sandbox-ns/uts").exists()
        agent.create_sandbox()


# --- the surface
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cid", ["", "../x", "a/b", ".hidden", "-x", "a b", "x" * 129, "a\n", "\u00e4"])
def test_bad_ids_are_refused(agent: AgentProcess, cid: str) -> None:
    """An id that could be anything but a name is INVALID_ARGUMENT, for containers and execs."""
    with refused(status.INVALID_ARGUMENT):
        agent.create(cid, "true")
    agent.start("c1", "sleep 60")
    with refused(status.INVALID_ARGUMENT):
        agent.exec("c1", cid, "true")


def test_taken_ids_are_refused(agent: AgentProcess) -> None:
    """ALREADY_EXISTS for a container and for an exec, and those that have the id live on."""
    agent.start("c1", "sleep 60")
    with refused(status.ALREADY_EXISTS):
        agent.create("c1", "true")
    agent.exec("c1", "e1", "sleep 60", agent.streams())
    with refused(status.ALREADY_EXISTS):
        agent.exec("c1", "e1", "true")
    with refused(status.ALREADY_EXISTS):
        agent.exec("c1", "c1", "true")
    agent.do("SignalProcess", container_id="c1", exec_id="e1", signal=9)
    assert agent.wait("c1", "e1") == 137


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("StartContainer", agent_pb2.StartContainerRequest(container_id="no")),
        ("RemoveContainer", agent_pb2.RemoveContainerRequest(container_id="no")),
        ("ExecProcess", agent_pb2.ExecProcessRequest(container_id="no", exec_id="e")),
        ("SignalProcess", agent_pb2.SignalProcessRequest(container_id="no", signal=9)),
        ("WaitProcess", agent_pb2.WaitProcessRequest(container_id="no")),
        ("UpdateContainer", agent_pb2.UpdateContainerRequest(container_id="no")),
        ("StatsContainer", agent_pb2.StatsContainerRequest(container_id="no")),
        ("PauseContainer", agent_pb2.PauseContainerRequest(container_id="no")),
        ("ResumeContainer", agent_pb2.ResumeContainerRequest(container_id="no")),
        ("WriteStdin", agent_pb2.WriteStreamRequest(container_id="no", data=b"x")),
        ("ReadStdout", agent_pb2.ReadStreamRequest(container_id="no", len=1)),
        ("CloseStdin", agent_pb2.CloseStdinRequest(container_id="no")),
        ("TtyWinResize", agent_pb2.TtyWinResizeRequest(container_id="no")),
    ],
)
def test_unknown_container_is_not_found(agent: AgentProcess, method: str, request_: object) -> None:
    """Every verb of a container that is not there is NOT_FOUND."""
    with refused(status.NOT_FOUND):
        agent.call(method, request_, empty_pb2.Empty)


def test_what_does_not_make_sense_is_unimplemented(agent: AgentProcess) -> None:
    """Methods that this agent does not have say so, each with its reason."""
    for method in ("SetPolicy", "AddSwap", "ResizeVolume", "GetIPTables", "GetDiagnosticData"):
        with refused(status.UNIMPLEMENTED):
            agent.call(method, getattr(agent_pb2, method + "Request")(), empty_pb2.Empty)


def test_guest_details_announce_the_features(agent: AgentProcess) -> None:
    """AgentDetails says what this agent can do beyond Kata's."""
    request = agent_pb2.GuestDetailsRequest(mem_block_size=True)
    details = agent.call("GetGuestDetails", request, agent_pb2.GuestDetailsResponse).agent_details
    assert {"hako.oci", "hako.stdio-streams"} <= set(details.extra_features)
    assert details.supports_seccomp
    assert "virtio-fs" in details.storage_handlers


def test_network_is_described(agent: AgentProcess) -> None:
    """ListInterfaces, ListRoutes and GetMetrics answer from the agent's own network namespace."""
    interfaces = agent.call("ListInterfaces", agent_pb2.ListInterfacesRequest(), agent_pb2.Interfaces)
    assert [entry.name for entry in interfaces.Interfaces] in ([], ["lo"])
    agent.call("ListRoutes", agent_pb2.ListRoutesRequest(), agent_pb2.Routes)
    metrics = agent.call("GetMetrics", agent_pb2.GetMetricsRequest(), agent_pb2.Metrics).metrics
    assert "# TYPE" in metrics


def test_pause_freezes_and_resume_thaws(tmp_path: Path) -> None:
    """A paused container makes no progress and can be killed; with a real cgroup v2 freezer."""
    with AgentProcess(tmp_path, cgroups=True) as agent:
        agent.create_sandbox()
        streams = agent.streams()
        agent.start("c1", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done", streams)
        streams.read_until(b"5\n")
        agent.do("PauseContainer", container_id="c1")
        with refused(status.FAILED_PRECONDITION):
            agent.exec("c1", "e1", "true")
        until(lambda: "frozen 1" in events(agent, "c1"))
        agent.do("ResumeContainer", container_id="c1")
        assert "frozen 0" in events(agent, "c1")
        streams.read_frame()
        agent.do("PauseContainer", container_id="c1")
        agent.do("SignalProcess", container_id="c1", exec_id="", signal=9)
        assert agent.wait("c1") == 137
        agent.do("RemoveContainer", container_id="c1")


def events(agent: AgentProcess, cid: str) -> str:
    """cgroup.events of a container."""
    [found] = Path(f"/proc/{agent.pid}/root/sys/fs/cgroup").rglob(f"{cid}/cgroup.events")
    return found.read_text()


def test_memory_of_a_busy_agent(agent: AgentProcess) -> None:
    """After containers and execs have come and gone, the agent is small and holds no descriptor of them."""
    descriptors = Path(f"/proc/{agent.pid}/fd")
    agent.start("warm", "true")
    agent.wait("warm")
    agent.do("RemoveContainer", container_id="warm")
    before = len(list(descriptors.iterdir()))
    for number in range(5):
        streams = agent.streams()
        agent.start(f"c{number}", "sleep 60", streams)
        inner = agent.streams()
        agent.exec(f"c{number}", "e", "echo x", inner)
        inner.read_all(), inner.read_all("stderr")
        agent.wait(f"c{number}", "e")
        agent.do("SignalProcess", container_id=f"c{number}", exec_id="", signal=9)
        agent.wait(f"c{number}")
        agent.do("RemoveContainer", container_id=f"c{number}")
        streams.close()
        inner.close()
    until(lambda: len(list(descriptors.iterdir())) <= before)
    assert memory_of(agent.pid)["Rss"] < MAX_RSS_KIB


def test_unused_fields_of_the_spec_are_carried(agent: AgentProcess) -> None:
    """hako's additions to the messages reach the process: umask of the user."""
    streams = agent.streams()
    spec = agent.spec("umask")
    spec.Process.User.CopyFrom(oci_pb2.User(UID=0, GID=0, Umask=0o27))
    agent.do("CreateContainer", container_id="c1", exec_id="c1", OCI=spec, **streams.ports)
    agent.do("StartContainer", container_id="c1")
    assert streams.read_all() == b"0027\n"
