"""One container: its life on the host and in the guest.

Containerd calls Create, Start, State; Exec, Start, Wait for further processes; Kill, Wait, Delete at the
end. Owns: the order of what happens in each verb, which is undone in reverse when a step fails. Must not
know: events, ttrpc, how the VM came up. Called by the task service through sandbox.py, each request in a
thread of its own.

`create`, `start`, `pause`, `resume`, `update` and `delete` exclude each other; `kill`, `state` and waiting
never wait for them, because an engine kills what hangs. Every process ends exactly once, in a thread of its
own: by the guest's answer to WaitProcess, or by the end of the VM (137).
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from agent.api import agent_pb2, oci_pb2
from shim import errors
from shim.oci import filters, mounts, translate
from shim.oci import spec as oci
from shim.sandbox import home, layers
from shim.sandbox.hostside import HostSide, Request
from shim.sandbox.placement import Files, Placed, Wanted
from shim.sandbox.process import KILLED, Exit, GuestProcess
from shim.sandbox.state import Status, allows, require
from shim.sandbox.streams import connect
from shim.stdio.binary import Owner
from shim.stdio.fifo import Names
from shim.stdio.relay import Relay, Streams
from shim.stdio.rpcrelay import RpcRelay
from shim.trace import Span

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from agent.linux.loop import Loop
    from shim.agent_client import AgentClient
    from shim.cgroups import Cgroup
    from shim.config import Config
    from shim.sandbox.store import Store

EXEC_GRACE = 5.0  # seconds for the execs of a container whose init ended to report their own end
OUTPUT_GRACE = 0.5  # seconds that an exit waits for the last output: clients close their ends when they hear of it
OOM_QUERY = 2.0  # seconds for the guest to say whether a killed container ran out of memory


class Listener(Protocol):
    """Who is told what happens by itself; called once per process, in threads of ours."""

    def exited(self, container: Container, process: GuestProcess, exit: Exit) -> None:
        """The process has ended; its stub is gone."""

    def out_of_memory(self, container: Container) -> None:
        """A process of the container was killed for memory; comes before the exit that it causes."""


class Home(Protocol):
    """What a container needs of its sandbox."""

    config: Config
    loop: Loop
    listener: Listener
    sandbox_id: str
    namespace: str
    in_pod: bool

    @property
    def store(self) -> Store:
        """The pod's state on disk."""

    @property
    def agent(self) -> AgentClient:
        """The agent; raises Unavailable when the VM is not up."""

    @property
    def files(self) -> Files:
        """How files reach the guest."""

    @property
    def vcpus(self) -> int:
        """CPUs of the VM."""

    def all_told(self, container: Container) -> None:
        """The container has ended, its output is out, both were told."""

    def init_ended(self, container: Container) -> None:
        """The container's init has ended, nobody was told yet."""

    def cgroup_of(self, container_id: str, spec: oci.Spec) -> Cgroup:
        """The container's cgroup on the host."""

    @property
    def agent_is_ours(self) -> bool:
        """Whether the agent knows what Kata's does not."""

    @property
    def streams_by_rpc(self) -> bool:
        """Whether the agent knows no stream connections."""

    def open_stream(self) -> tuple[socket, int]:
        """A stream to the agent and the port by which the agent knows it."""

    def container_of_pid(self, pid: int) -> str | None:
        """The container whose stub has this pid."""

    def await_sandbox(self) -> None:
        """Until the sandbox is there in the guest. Raises HakoError."""

    def log(self, level: str, message: str) -> None:
        """For the operator."""


class Container:
    """See the module. `init` is the container's own process, `execs` the others by their ids."""

    def __init__(self, home: Home, request: Request) -> None:
        self.id = request.id
        self.bundle = request.bundle
        self.spec = request.spec
        self.request = request
        self.init = GuestProcess(request.id, "", request.names, request.spec.process)
        self.execs: dict[str, GuestProcess] = {}
        runtime, plugged = home.config.runtime, home.config.share.shared_fs == "none"
        on_disk = plugged and layers.device(request.rootfs) is not None
        self.host = HostSide(request, home.store, self._warn, run_hooks=runtime.host_hooks, mount_rootfs=not on_disk)
        self._home = home
        self._verbs = threading.RLock()
        self._guard = threading.Lock()
        self._undo = ExitStack()
        self._in_guest = False
        self._root_on_host = ""
        self._oom_lock = threading.Lock()
        self._oom_noticed = False
        self._oom_told = False

    def prepare(self, netns: str) -> None:
        """The host's side. Raises HakoError; nothing is left then. `netns`: host path of the namespace."""
        with self._verbs, Span("host side", self.id):
            cgroup = self._home.cgroup_of(self.id, self.spec)
            self.host.prepare(cgroup, netns, lambda: _in_thread(self._stub_killed))

    def create_in_guest(self) -> int:
        """The guest's side; the VM is up. Returns the host pid. Raises HakoError; call `discard` then."""
        with self._verbs:
            with Span("share", self.id):
                plans = mounts.plan(self.spec, self.bundle)
                placed = self._place(plans)
                guest_spec = translate.translate(self.spec, plans, self._places(placed))
                self._root_on_host = placed.on_host
                home.complete(guest_spec.Process, self.spec, self._root_on_host)
                filters.compile_in(guest_spec, keep_profile=not self._home.agent_is_ours)
            with Span("streams", self.id):
                relay, ports = connect(self._home, self._streams(self.init), self.id, self.id)
            request = agent_pb2.CreateContainerRequest(
                container_id=self.id,
                exec_id=self.id,
                storages=placed.storages,
                OCI=guest_spec,
                sandbox_pidns=self._take_sandbox_pidns(guest_spec),
                stdin_port=ports.stdin,
                stdout_port=ports.stdout,
                stderr_port=ports.stderr,
            )
            try:
                with Span("create", self.id):
                    timeout = self._home.config.runtime.create_container_timeout
                    created = self._home.agent.begin("CreateContainer", request, timeout)
                    failure = self._start_stub()
                    self._home.await_sandbox()  # what it failed with comes before what follows from that
                    created()
            except BaseException:
                relay.close()
                raise
            self._await_stub(relay, failure)
            self._created(relay)
            return self.init.pid

    def _start_stub(self) -> errors.HakoError | None:
        """Beside the guest's work; why there is none is told when that is done, and can be undone."""
        try:
            self.host.start_stub()
        except errors.HakoError as exc:
            return exc
        self.init.pid = self.host.pid
        return None

    def _await_stub(self, relay: Relay | RpcRelay, failure: errors.HakoError | None) -> None:
        """The stub's pid is about to be told; it had the time that the guest took."""
        try:
            if failure is not None:
                raise failure
            self.host.await_stub()
        except BaseException:
            relay.close()
            self._in_guest = True
            self._remove_in_guest()
            raise

    def discard(self) -> None:
        """Undo `prepare` and `create_in_guest` after a failure."""
        if self.init.relay is not None:
            self.init.relay.close()
        self._undo.close()
        self.host.release()

    def _place(self, plans: list[mounts.MountPlan]) -> Placed:
        """Let the guest see root filesystem and volumes. The VM ends with the pod's first container."""
        files = self._home.files
        self._undo.callback(files.remove, self.id, machine_ends=self.id == self._home.sandbox_id)
        return files.place(Wanted(self.id, self.spec, plans, self.host.rootfs_path, self.request.rootfs))

    def _places(self, placed: Placed) -> translate.GuestPlaces:
        return translate.GuestPlaces(
            container_id=self.id,
            rootfs=placed.rootfs,
            sources=placed.sources,
            in_pod=self._home.in_pod,
            vcpus=self._home.vcpus,
            container_of_pid=self._home.container_of_pid,
        )

    def _take_sandbox_pidns(self, guest_spec: oci_pb2.Spec) -> bool:
        """Kata's flag for the pause container's pid namespace, in place of the path."""
        for namespace in guest_spec.Linux.Namespaces:
            if namespace.Type == "pid" and namespace.Path == f"container:{self._home.sandbox_id}":
                namespace.Path = ""
                return True
        return False

    def _streams(self, process: GuestProcess) -> Streams:
        """The engine's ends, opened."""
        try:
            return Streams(process.names, Owner(self.id, self._home.namespace))
        except OSError as exc:
            raise errors.HakoError(exc.strerror or str(exc), step="open streams", object=exc.filename or process.id) from exc

    def _created(self, relay: Relay | RpcRelay) -> None:
        self._in_guest = True
        self.init.relay = relay
        self.init.status = Status.CREATED
        relay.start()
        if self.init.stdin_closed:
            relay.close_stdin()
        self._watch(self.init)
        self._apply_size(self.init)

    def start(self) -> int:
        """Run the container's process; its host pid. The caller sets `init.announced` once it has told so."""
        with self._verbs:
            require(self.init.status, "start", self.id)
            self.init.announced.clear()
            try:
                with Span("start", self.id):
                    self._home.agent.do("StartContainer", agent_pb2.StartContainerRequest(container_id=self.id))
            except BaseException:
                self.init.announced.set()
                raise
            if self.init.relay is not None:
                self.init.relay.start_input()
            with self._guard:
                if self.init.status is Status.CREATED:
                    self.init.status = Status.RUNNING
            self.host.started()
            return self.init.pid

    def add_exec(self, exec_id: str, process: oci.Process, names: Names) -> None:
        """Remember a process to be started. Raises AlreadyExists, WrongState."""
        require(self.init.status, "exec", self.id)
        with self._guard:
            if exec_id in self.execs or not exec_id:
                raise errors.AlreadyExists("exec id is taken", object=exec_id)
            added = GuestProcess(self.id, exec_id, names, process)
            added.status = Status.CREATED
            self.execs[exec_id] = added

    def start_exec(self, exec_id: str) -> int:
        """Run an added process; its pid is the stub's. Raises HakoError, also if there is no such program."""
        process = self.process(exec_id)
        with process.verbs:
            require(process.status, "start", exec_id)
            require(self.init.status, "exec", self.id)
            assert process.spec is not None
            relay, ports = connect(self._home, self._streams(process), self.id, exec_id)
            request = agent_pb2.ExecProcessRequest(
                container_id=self.id,
                exec_id=exec_id,
                process=translate.translate_process(process.spec),
                stdin_port=ports.stdin,
                stdout_port=ports.stdout,
                stderr_port=ports.stderr,
            )
            home.complete(request.process, self.spec, self._root_on_host)
            process.announced.clear()
            try:
                self._home.agent.do("ExecProcess", request)
            except BaseException:
                relay.close()
                process.announced.set()
                process.finish(Exit.now(255))
                raise
            self._exec_started(process, relay)
            return process.pid

    def _exec_started(self, process: GuestProcess, relay: Relay | RpcRelay) -> None:
        process.pid = self.init.pid
        process.relay = relay
        process.status = Status.RUNNING
        relay.start()
        relay.start_input()
        if process.stdin_closed:
            relay.close_stdin()
        self._watch(process)
        self._apply_size(process)

    def kill(self, exec_id: str, number: int, *, everything: bool) -> None:
        """Send a signal; 0 only asks whether the process is there. Raises NotFound if it has ended."""
        process = self.process(exec_id)
        if exec_id and process.status is Status.CREATED:
            raise errors.WrongState("cannot kill a process that was not started", object=exec_id)
        require(process.status, "kill", process.id)
        if not number:
            return
        if number == signal.SIGKILL and self.init.status is Status.PAUSED:
            self.resume()
        target = "" if everything and not exec_id else process.id
        request = agent_pb2.SignalProcessRequest(container_id=self.id, exec_id=target, signal=number)
        try:
            self._home.agent.do("SignalProcess", request)
        except (errors.NotFound, errors.Unavailable) as exc:
            raise errors.NotFound("process already finished", object=process.id) from exc

    def pause(self) -> None:
        """Freeze all processes of the container in the guest."""
        with self._verbs:
            require(self.init.status, "pause", self.id)
            self._home.agent.do("PauseContainer", agent_pb2.PauseContainerRequest(container_id=self.id))
            self._change(Status.RUNNING, Status.PAUSED)

    def resume(self) -> None:
        """Let them run again."""
        with self._verbs:
            require(self.init.status, "resume", self.id)
            self._home.agent.do("ResumeContainer", agent_pb2.ResumeContainerRequest(container_id=self.id))
            self._change(Status.PAUSED, Status.RUNNING)

    def update(self, resources: oci.Resources) -> None:
        """New limits, in the guest and on the host."""
        with self._verbs:
            require(self.init.status, "update", self.id)
            limits = translate.translate_resources(resources, self._home.vcpus)
            request = agent_pb2.UpdateContainerRequest(container_id=self.id, resources=limits)
            self._home.agent.do("UpdateContainer", request)
            self.host.apply(resources)

    def stats(self, timeout: float | None = None) -> agent_pb2.StatsContainerResponse:
        """What the guest's cgroup counts."""
        require(self.init.status, "stats", self.id)
        request = agent_pb2.StatsContainerRequest(container_id=self.id)
        return self._home.agent.call("StatsContainer", request, agent_pb2.StatsContainerResponse, timeout)

    def resize(self, exec_id: str, columns: int, rows: int) -> None:
        """Size of the terminal; kept for later if the process is not there yet, nothing without a terminal."""
        process = self.process(exec_id)
        if not process.names.terminal or not allows(process.status, "resize"):
            return
        process.size = (columns, rows)
        if process.relay is not None:
            self._apply_size(process)

    def close_stdin(self, exec_id: str) -> None:
        """CloseIO: whatever is in the fifo still goes to the process, then the end.

        Repeatable, at any time.
        """
        process = self.process(exec_id)
        process.stdin_closed = True
        if process.relay is not None:
            process.relay.close_stdin()

    def process(self, exec_id: str) -> GuestProcess:
        """The exec, or init for "". Raises NotFound."""
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise errors.NotFound("no such exec", object=exec_id) from None

    def delete_exec(self, exec_id: str) -> GuestProcess:
        """Forget an exec that has ended or was never started. Raises NotFound, WrongState."""
        process = self.process(exec_id)
        with process.verbs:
            require(process.status, "delete", exec_id)
            self._finish(process)
            with self._guard:
                self.execs.pop(exec_id, None)
            process.status = Status.DELETED
        return process

    def delete(self, *, machine_ends: bool = False) -> None:
        """Take the container away, in the guest if that still lives, and on the host. Raises WrongState.

        With `machine_ends` the guest is about to be killed, and need not be asked unless it has something to lose.
        """
        with self._verbs:
            require(self.init.status, "delete", self.id)
            processes = (*self.execs.values(), self.init)
            if self.init.status is Status.CREATED:
                self._remove_in_guest()
                self._ended(self.init, Exit.now(KILLED), tell=False)
            # An engine may delete as soon as it knows of the exit: the last output is taken before the guest
            # lets go of it.
            for process in processes:
                self._finish(process)
            self._remove_in_guest(machine_ends=machine_ends)
            self._undo.close()
            self.host.release()
            self.host.stopped()
            self.init.status = Status.DELETED

    def _remove_in_guest(self, *, machine_ends: bool = False) -> None:
        if not self._in_guest:
            return
        self._in_guest = False
        try:
            if machine_ends and not self._home.files.unsaved:
                return
            timeout = self._home.config.runtime.stop_timeout
            request = agent_pb2.RemoveContainerRequest(container_id=self.id, timeout=int(timeout))
            self._home.agent.do("RemoveContainer", request, timeout + 5)
        except errors.HakoError as exc:
            # A dead guest has nothing left to remove; a refusal must not keep the engine from forgetting it.
            self._home.log("debug", f"RemoveContainer {self.id}: {exc}")

    def _finish(self, process: GuestProcess) -> None:
        """Before a process is forgotten: its end is told (who waits for it hears of it a little earlier), its output is out."""
        if process.status is Status.STOPPED:
            process.told.wait(EXEC_GRACE)
        if process.relay is not None:
            process.relay.drain(self._home.config.runtime.stdio_drain_timeout)
            process.relay.close()

    def machine_died(self) -> None:
        """The VM is gone: every process has ended, execs first. Called once, in a thread of the sandbox."""
        self._in_guest = False
        for process in (*self.execs.values(), self.init):
            if process.status not in (Status.CREATING, Status.STOPPED, Status.DELETED):
                if process.exec_id and process.status is Status.CREATED:
                    process.finish(Exit.now(KILLED))
                    process.told.set()
                else:
                    self._ended(process, Exit.now(KILLED))

    def kill_and_wait(self) -> None:
        """End the container because its pod ends; back when its end was told."""
        if not allows(self.init.status, "kill"):
            return
        try:
            self.kill("", signal.SIGKILL, everything=True)
        except errors.HakoError as exc:
            self._home.log("debug", f"kill {self.id}: {exc}")
        if not self.init.told.wait(EXEC_GRACE):
            self._ended(self.init, Exit.now(KILLED))

    def _watch(self, process: GuestProcess) -> None:
        def answered(status: int | None, error: errors.HakoError | None) -> None:
            if status is not None:
                _in_thread(lambda: self._ended(process, Exit.now(status)))
            elif isinstance(error, errors.NotFound):
                _in_thread(lambda: self._ended(process, Exit.now(255)))
            else:
                _in_thread(lambda: self._unwatched(process))

        self._home.agent.wait_process(self.id, process.id, answered)

    def _unwatched(self, process: GuestProcess) -> None:
        """The connection has ended, and with it the machine (sandbox.py), which ends every process that it finds; one that
        was about to be started then is ended here.
        """
        if not process.told.wait(EXEC_GRACE):
            self._ended(process, Exit.now(KILLED))

    def _ended(self, process: GuestProcess, exit: Exit, *, tell: bool = True) -> None:
        """The one way in which a process ends, at most once."""
        if not process.take_end():
            return
        if process is self.init:
            self._home.init_ended(self)
            self._end_execs()
            self._end_stub()
            if self._ran_out_of_memory(exit):
                self._tell_oom()
        if process.relay is not None:
            process.relay.drain(OUTPUT_GRACE)
        process.announced.wait(EXEC_GRACE)
        process.finish(exit)
        if tell:
            self._home.listener.exited(self, process, exit)
        process.told.set()
        if process is not self.init:
            return
        if process.relay is not None:
            self._close_later(process.relay)
        if tell and self._is_drained():
            self._home.all_told(self)

    def _is_drained(self) -> bool:
        """Whether nothing is on its way from the guest any more."""
        relays = [process.relay for process in (*self.execs.values(), self.init) if process.relay is not None]
        return all(relay.drain(0) for relay in relays)

    def _end_stub(self) -> None:
        """Nothing about the stub must keep the container's end from being told."""
        try:
            self.host.end_stub()
        except errors.HakoError as exc:
            self._warn(f"the stub of {self.id}: {exc}")

    def _end_execs(self) -> None:
        """Init has ended: what else ran in the container ends with it, and is told first."""
        running = [process for process in tuple(self.execs.values()) if process.status is Status.RUNNING]
        pid_namespace = self.spec.namespace("pid")
        alone = pid_namespace is not None and not pid_namespace.path
        if alone and not running:
            return  # the kernel has ended everything in init's own pid namespace
        request = agent_pb2.SignalProcessRequest(container_id=self.id, exec_id="", signal=int(signal.SIGKILL))
        try:
            self._home.agent.do("SignalProcess", request, EXEC_GRACE)
        except errors.HakoError as exc:
            self._home.log("debug", f"kill the rest of {self.id}: {exc}")
        for process in running:
            if not process.told.wait(EXEC_GRACE):
                self._ended(process, Exit.now(KILLED))

    def note_oom(self) -> None:
        """The guest tells of an out-of-memory kill. Does not block."""
        self._oom_noticed = True
        _in_thread(self._tell_oom)

    def _ran_out_of_memory(self, exit: Exit) -> bool:
        """Whether it did; the guest is asked, because its own event may come later than the exit."""
        if self._oom_noticed:
            return True
        if exit.status != KILLED or not self._in_guest:
            return False
        request = agent_pb2.StatsContainerRequest(container_id=self.id)
        try:
            reply = agent_pb2.StatsContainerResponse
            stats = self._home.agent.call("StatsContainer", request, reply, OOM_QUERY)
        except errors.HakoError:
            return False
        return stats.cgroup_stats.memory_stats.events["oom_kill"] > 0

    def _tell_oom(self) -> None:
        """Tell it once, after the start and before the exit; for CRI-O, leave a file in the bundle."""
        self.init.announced.wait(EXEC_GRACE)
        with self._oom_lock:
            if self._oom_told:
                return
            self._oom_told = True
            try:
                with open(os.path.join(self.bundle, "oom"), "ab"):
                    pass
            except OSError as exc:
                self._home.log("warn", f"oom file of {self.id}: {exc}")
            self._home.listener.out_of_memory(self)

    def _close_later(self, relay: Relay | RpcRelay) -> None:
        """A stream that something else in the guest holds open ends some time after the container."""
        delay = self._home.config.runtime.stdio_drain_timeout
        loop = self._home.loop

        def plan_close() -> None:
            loop.call_later(delay, relay.close)

        loop.call_threadsafe(plan_close)

    def _stub_killed(self) -> None:
        if self.init.exit is not None:
            return
        self._home.log("warn", f"the stub of {self.id} was killed; killing the container")
        try:
            self.kill("", signal.SIGKILL, everything=True)
        except errors.HakoError as exc:
            self._home.log("debug", f"kill {self.id}: {exc}")

    def _change(self, before: Status, after: Status) -> None:
        with self._guard:
            if self.init.status is before:
                self.init.status = after

    def _warn(self, message: str) -> None:
        self._home.log("warn", message)

    def _apply_size(self, process: GuestProcess) -> None:
        if process.size is None or not process.names.terminal:
            return
        columns, rows = process.size
        request = agent_pb2.TtyWinResizeRequest(container_id=self.id, exec_id=process.id, row=rows, column=columns)
        try:
            self._home.agent.do("TtyWinResize", request)
        except errors.HakoError as exc:
            self._home.log("debug", f"resize {process.id}: {exc}")


def _in_thread(function: Callable[[], None]) -> None:
    """Run away from the thread that answers for the connection or watches the children."""
    threading.Thread(target=function, name="hako-end", daemon=True).start()
