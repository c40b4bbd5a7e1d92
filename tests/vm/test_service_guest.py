"""The agent as PID 1 of a real guest, called as the shim calls it: what needs the guest's own kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from agent.api import agent_pb2, empty_pb2
from agent.ttrpc import status
from agent.ttrpc.status import RpcError
from tests.framework import agentvm
from tests.framework.agentcalls import until
from tests.framework.agentvm import AgentVm

pytestmark = [pytest.mark.vm, pytest.mark.skipif(bool(agentvm.missing()), reason=agentvm.missing())]

MIB = 1 << 20
MAX_RSS = 20 * MIB


@pytest.fixture(scope="module")
def guest() -> Iterator[AgentVm]:
    """One VM for the tests of this module, each of which has its own container ids."""
    with AgentVm() as made:
        made.create_sandbox()
        yield made


def metric(guest: AgentVm, name: str) -> float:
    text = guest.call("GetMetrics", agent_pb2.GetMetricsRequest(), agent_pb2.Metrics).metrics
    [line] = [line for line in text.splitlines() if line.startswith(name + " ")]
    return float(line.split()[1])


def stats(guest: AgentVm, cid: str) -> agent_pb2.StatsContainerResponse:
    request = agent_pb2.StatsContainerRequest(container_id=cid)
    return guest.call("StatsContainer", request, agent_pb2.StatsContainerResponse)


def remove(guest: AgentVm, cid: str) -> None:
    guest.do("RemoveContainer", container_id=cid)


def test_whole_life_by_streams(guest: AgentVm) -> None:
    """stdin, stdout, stderr over vsock, exit code, removal; the root file system is the share."""
    streams = guest.streams()
    guest.start("life", "cat; echo err >&2; touch /tmp/from-the-guest; exit 7", streams)
    streams.write(b"hello\n" * 1000)
    streams.close_stdin()
    assert streams.read_all() == b"hello\n" * 1000
    assert streams.read_all("stderr") == b"err\n"
    assert guest.wait("life") == 7
    remove(guest, "life")
    assert (guest.rootfs() / "tmp/from-the-guest").exists()


def test_large_output_is_whole_though_the_process_ends_at_once(guest: AgentVm) -> None:
    """8 MiB written right before the exit arrive to the last byte, with a reader that pauses."""
    streams = guest.streams("stdout")
    guest.start("large", "dd if=/dev/zero bs=64k count=128 2>/dev/null; echo the end", streams)
    time.sleep(1)
    assert streams.read_all() == bytes(8 * MIB) + b"the end\n"
    assert guest.wait("large") == 0
    remove(guest, "large")


def test_terminal(guest: AgentVm) -> None:
    """A terminal over vsock, with its size changed while it runs."""
    streams = guest.streams("stdin", "stdout")
    guest.start("tty", "read x; stty size; exit 3", streams, process={"terminal": True})
    guest.do("TtyWinResize", container_id="tty", row=50, column=132)
    streams.write(b"\n")
    assert b"50 132\r\n" in streams.read_all()
    assert guest.wait("tty") == 3
    remove(guest, "tty")


def test_rpc_stdio(guest: AgentVm) -> None:
    """Kata's stdio calls, as a Kata shim makes them."""
    guest.start("rpc", "cat; exit 2")
    request = agent_pb2.WriteStreamRequest(container_id="rpc", exec_id="rpc", data=b"x" * 50_000)
    assert guest.call("WriteStdin", request, agent_pb2.WriteStreamResponse).len == 50_000
    guest.do("CloseStdin", container_id="rpc", exec_id="rpc")
    assert guest.read_all("ReadStdout", "rpc", "rpc") == b"x" * 50_000
    assert guest.wait("rpc", "rpc") == 2
    remove(guest, "rpc")


def test_pause_and_resume(guest: AgentVm) -> None:
    """A paused container uses no CPU, refuses an exec, and goes on; killed while paused, it dies."""
    guest.start("pause", "while :; do :; done")
    guest.do("PauseContainer", container_id="pause")
    before = stats(guest, "pause").cgroup_stats.cpu_stats.cpu_usage.total_usage
    with pytest.raises(RpcError) as caught:
        guest.exec("pause", "e", "true")
    assert caught.value.code == status.FAILED_PRECONDITION
    time.sleep(0.5)
    frozen = stats(guest, "pause").cgroup_stats.cpu_stats.cpu_usage.total_usage
    assert frozen - before < 50_000_000
    guest.do("ResumeContainer", container_id="pause")
    until(lambda: stats(guest, "pause").cgroup_stats.cpu_stats.cpu_usage.total_usage > frozen + 50_000_000)
    guest.do("PauseContainer", container_id="pause")
    guest.do("SignalProcess", container_id="pause", exec_id="", signal=9)
    assert guest.wait("pause") == 137
    remove(guest, "pause")


def test_oom_is_told_before_the_exit(guest: AgentVm) -> None:
    """A container over its memory limit: GetOOMEvent names it, and is answered before WaitProcess."""
    order: list[str] = []
    limit = {"resources": {"memory": {"limit": 16 * MIB, "swap": 16 * MIB}}}
    guest.create("oom", "x=$(dd if=/dev/zero bs=1M count=64 2>/dev/null | tr '\\0' x); echo $x", linux=limit)
    oom = guest.later("GetOOMEvent", agent_pb2.GetOOMEventRequest(), agent_pb2.OOMEvent)
    wait = guest.later("WaitProcess", agent_pb2.WaitProcessRequest(container_id="oom"), agent_pb2.WaitProcessResponse)
    oom.then(lambda: order.append("oom"))
    wait.then(lambda: order.append("exit"))
    guest.do("StartContainer", container_id="oom")
    assert wait.get().status == 137
    assert oom.get().container_id == "oom"
    assert order == ["oom", "exit"]
    assert stats(guest, "oom").cgroup_stats.memory_stats.events["oom_kill"] >= 1
    remove(guest, "oom")


def test_limits_are_enforced_and_can_be_changed(guest: AgentVm) -> None:
    """pids and memory limits are the cgroup's, show in the statistics, and UpdateContainer changes them."""
    limits = {"resources": {"pids": {"limit": 6}, "memory": {"limit": 32 * MIB}}}
    guest.start("limits", "for i in 1 2 3 4; do sleep 60 & done; exec sleep 60", linux=limits)
    until(lambda: stats(guest, "limits").cgroup_stats.pids_stats.current == 5)
    found = stats(guest, "limits")
    assert found.cgroup_stats.pids_stats.limit == 6
    assert found.cgroup_stats.memory_stats.usage.limit == 32 * MIB
    assert len(found.pids) == 5
    streams = guest.streams()
    guest.exec("limits", "fork", "sleep 0 & echo forked", streams)
    assert b"can't fork" in streams.read_all("stderr")
    assert guest.wait("limits", "fork") != 0
    update = agent_pb2.UpdateContainerRequest(container_id="limits")
    update.resources.Memory.Limit = 64 * MIB
    guest.call("UpdateContainer", update, empty_pb2.Empty)
    assert stats(guest, "limits").cgroup_stats.memory_stats.usage.limit == 64 * MIB
    remove(guest, "limits")


def test_guest_has_time_randomness_and_details(guest: AgentVm) -> None:
    """SetGuestDateTime and ReseedRandomDev work in a guest; details say that the agent is its init."""
    guest.do("SetGuestDateTime", Sec=1_900_000_000, Usec=5)
    streams = guest.streams("stdout")
    guest.start("date", "date +%s", streams)
    assert 0 <= int(streams.read_all()) - 1_900_000_000 < 30
    guest.do("ReseedRandomDev", data=b"\x5a" * 64)
    request = agent_pb2.GuestDetailsRequest(mem_block_size=True)
    details = guest.call("GetGuestDetails", request, agent_pb2.GuestDetailsResponse).agent_details
    assert details.init_daemon
    remove(guest, "date")


def test_agent_stays_small(guest: AgentVm) -> None:
    """After containers and execs, the agent's resident memory is below 20 MiB and no descriptor is left."""
    guest.start("small", "sleep 600")
    guest.exec("small", "warm", "true", guest.streams())
    guest.wait("small", "warm")
    before = metric(guest, "kata_agent_process_open_fds")
    for number in range(5):
        streams = guest.streams()
        guest.exec("small", f"e{number}", "echo x", streams)
        assert streams.read_all() == b"x\n"
        assert streams.read_all("stderr") == b""
        streams.close()
        assert guest.wait("small", f"e{number}") == 0
    until(lambda: metric(guest, "kata_agent_process_open_fds") <= before)
    assert metric(guest, "kata_agent_process_resident_memory_bytes") < MAX_RSS
    remove(guest, "small")
    assert "Traceback" not in guest.log()


def test_destroy_powers_the_machine_off() -> None:
    """DestroySandbox is answered, and then the VMM ends by itself."""
    with AgentVm() as guest:
        guest.create_sandbox()
        guest.start("c", "sleep 600")
        guest.do("DestroySandbox")
        guest.client.close()
        until(guest.vm.exited, 10)
        assert "cannot" not in guest.log()
