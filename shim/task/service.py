"""containerd's task service: each method logs, delegates and answers; errors carry their code to the wire.

Owns: the methods' messages, which event follows which verb, Wait. Must not know: VMs, files, fifos.
Registered by daemon.py with the ttrpc server for task v2 and v3, whose messages are the same; each request
runs in a thread of its own.

Events, in the order that engines rely on: create, start, exit, delete; for execs exec-added, exec-started,
exit. An exit waits for the start that it belongs to (`GuestProcess.announced`), execs' exits come before
init's (container.py).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from agent.api import empty_pb2
from agent.ttrpc.server import Deferred
from shim import errors, trace
from shim.oci import spec as oci
from shim.sandbox.hostside import Request
from shim.sandbox.rootfs import RootfsMount
from shim.sandbox.state import Status
from shim.stdio.fifo import Names
from shim.task import deleted, metrics
from shim.task.api import events_pb2, options_pb2, task_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.api import timestamp_pb2
    from shim.sandbox.container import Container
    from shim.sandbox.process import Exit, GuestProcess
    from shim.sandbox.sandbox import Sandbox
    from shim.task.events import Publisher

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
PROCESS_DETAILS = "containerd.runc.v1.ProcessDetails"
EMPTY = empty_pb2.Empty()
TAKE_DOWN = 1.0  # seconds that Shutdown waits for the end of the pod's machine; containerd waits 3 for Shutdown


class TaskService:
    """One pod's tasks. `shut_down` is called when the engine wants the process to end and no task is left."""

    def __init__(self, publisher: Publisher, log: Callable[[str, str], None], shut_down: Callable[[], None]) -> None:
        self._publisher = publisher
        self._log = log
        self._shut_down = shut_down
        self.refusal: errors.HakoError | None = None
        """Why no container can be created at all."""
        self.on_change: Callable[[], None] = _nothing
        """Called when a container has been created, or not, and when one was deleted."""
        self.sandbox: Sandbox
        """Set by daemon.py: the sandbox tells us of exits, so each needs the other."""
        self.on_started: Callable[[str], None] = lambda container_id: None
        """Called when a container's start was announced."""
        self._last_answer: tuple[str, bytes] | None = None
        """the last container's bundle, and what `delete` is to answer there when the pod has gone"""

    def methods(self) -> dict[str, tuple[Any, Callable[[Any, Any], Any]]]:
        """Method name -> (request class, handler), for agent.ttrpc.server."""
        api = task_pb2
        return {
            "Create": (api.CreateTaskRequest, self._logged(_traced("Create", self.create))),
            "Start": (api.StartRequest, self._logged(_traced("Start", self.start))),
            "Delete": (api.DeleteRequest, self._logged(self.delete)),
            "Exec": (api.ExecProcessRequest, self._logged(self.exec)),
            "ResizePty": (api.ResizePtyRequest, self._logged(self.resize_pty)),
            "State": (api.StateRequest, self._logged(self.state)),
            "Pause": (api.PauseRequest, self._logged(self.pause)),
            "Resume": (api.ResumeRequest, self._logged(self.resume)),
            "Kill": (api.KillRequest, self._logged(self.kill)),
            "Pids": (api.PidsRequest, self._logged(self.pids)),
            "CloseIO": (api.CloseIORequest, self._logged(self.close_io)),
            "Checkpoint": (api.CheckpointTaskRequest, self._logged(self.checkpoint)),
            "Update": (api.UpdateTaskRequest, self._logged(self.update)),
            "Wait": (api.WaitRequest, self._logged(self.wait)),
            "Stats": (api.StatsRequest, self._logged(self.stats)),
            "Connect": (api.ConnectRequest, self._logged(self.connect)),
            "Shutdown": (api.ShutdownRequest, self._logged(self.shutdown)),
        }

    def _logged(self, method: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        def handler(request: Any, _call: Any) -> Any:
            name = f"{method.__name__} {request.id} {getattr(request, 'exec_id', '')}".rstrip()
            self._log("debug", name)
            try:
                return method(request)
            except errors.HakoError as exc:
                self._log("info" if exc.code == errors.NOT_FOUND else "error", f"{name}: {exc}")
                raise

        return handler

    # One task's life.

    def create(self, request: task_pb2.CreateTaskRequest) -> task_pb2.CreateTaskResponse:
        """Create the container, and the pod's VM with its first one."""
        if self.refusal is not None:
            raise self.refusal
        if request.checkpoint or request.parent_checkpoint:
            raise errors.Unsupported("checkpoints cannot be restored", object=request.id)
        mounts = tuple(RootfsMount(m.type, m.source, tuple(m.options), m.target) for m in request.rootfs)
        names = Names(request.stdin, request.stdout, request.stderr, request.terminal)
        with trace.Span("spec", request.id):
            spec = oci.load(request.bundle)
            oci.check_runnable(spec)
        try:
            pid = self.sandbox.create(Request(request.id, request.bundle, spec, names, mounts))
        finally:
            self.on_change()
        event = events_pb2.TaskCreate(container_id=request.id, bundle=request.bundle, rootfs=request.rootfs, pid=pid)
        event.io.stdin, event.io.stdout, event.io.stderr, event.io.terminal = names
        self._publisher.publish(event)
        return task_pb2.CreateTaskResponse(pid=pid)

    def start(self, request: task_pb2.StartRequest) -> task_pb2.StartResponse:
        """Run the container's process, or an exec."""
        container = self.sandbox.find(request.id)
        process = container.process(request.exec_id)
        if request.exec_id:
            pid = container.start_exec(request.exec_id)
            event: Any = events_pb2.TaskExecStarted(container_id=request.id, exec_id=request.exec_id, pid=pid)
        else:
            pid = self.sandbox.start(container)
            event = events_pb2.TaskStart(container_id=request.id, pid=pid)
        self._publisher.publish(event)
        process.announced.set()
        if not request.exec_id:
            self.on_started(request.id)
        return task_pb2.StartResponse(pid=pid)

    def delete(self, request: task_pb2.DeleteRequest) -> task_pb2.DeleteResponse:
        """Forget an exec, or take the container away; how it ended."""
        container = self.sandbox.find(request.id)
        if request.exec_id:
            return _deleted(container.delete_exec(request.exec_id))
        self.sandbox.delete(container)
        self.on_change()
        reply = _deleted(container.init)
        self._answer_later(container.bundle, reply.SerializeToString())
        self._publisher.publish(
            events_pb2.TaskDelete(
                container_id=request.id,
                pid=reply.pid,
                exit_status=reply.exit_status,
                exited_at=reply.exited_at,
            )
        )
        return reply

    def exec(self, request: task_pb2.ExecProcessRequest) -> empty_pb2.Empty:
        """Remember a further process; Start runs it."""
        container = self.sandbox.find(request.id)
        process = oci.decode(request.spec.value, oci.Process, "process")
        oci.check_process(process)
        names = Names(request.stdin, request.stdout, request.stderr, request.terminal)
        container.add_exec(request.exec_id, process, names)
        self._publisher.publish(events_pb2.TaskExecAdded(container_id=request.id, exec_id=request.exec_id))
        return EMPTY

    def wait(self, request: task_pb2.WaitRequest) -> Deferred:
        """How the process ended, once it has."""
        process = self.sandbox.find(request.id).process(request.exec_id)
        answer = Deferred()

        def ended(exit: Exit) -> None:
            reply = task_pb2.WaitResponse(exit_status=exit.status)
            _stamp(reply.exited_at, exit.at)
            answer.resolve(reply)

        process.on_exit(ended)
        return answer

    def kill(self, request: task_pb2.KillRequest) -> empty_pb2.Empty:
        """Send a signal."""
        container = self.sandbox.find(request.id)
        container.kill(request.exec_id, request.signal, everything=request.all)
        return EMPTY

    def pause(self, request: task_pb2.PauseRequest) -> empty_pb2.Empty:
        """Freeze the container."""
        self.sandbox.find(request.id).pause()
        self._publisher.publish(events_pb2.TaskPaused(container_id=request.id))
        return EMPTY

    def resume(self, request: task_pb2.ResumeRequest) -> empty_pb2.Empty:
        """Let it run again."""
        self.sandbox.find(request.id).resume()
        self._publisher.publish(events_pb2.TaskResumed(container_id=request.id))
        return EMPTY

    def update(self, request: task_pb2.UpdateTaskRequest) -> empty_pb2.Empty:
        """New limits: the Any holds LinuxResources as JSON."""
        container = self.sandbox.find(request.id)
        container.update(oci.decode(request.resources.value, oci.Resources, "linux.resources"))
        return EMPTY

    def checkpoint(self, request: task_pb2.CheckpointTaskRequest) -> empty_pb2.Empty:
        """Not something that a container in a shared VM can have."""
        raise errors.Unsupported("checkpoints are not supported", object=request.id)

    # Terminal and streams.

    def resize_pty(self, request: task_pb2.ResizePtyRequest) -> empty_pb2.Empty:
        """Size of the terminal."""
        self.sandbox.find(request.id).resize(request.exec_id, request.width, request.height)
        return EMPTY

    def close_io(self, request: task_pb2.CloseIORequest) -> empty_pb2.Empty:
        """No more input."""
        if request.stdin:
            self.sandbox.find(request.id).close_stdin(request.exec_id)
        return EMPTY

    # Looking. None of these but Stats asks the guest.

    def state(self, request: task_pb2.StateRequest) -> task_pb2.StateResponse:
        """Where the process is."""
        container = self.sandbox.find(request.id)
        process = container.process(request.exec_id)
        reply = task_pb2.StateResponse(
            id=process.id,
            bundle=container.bundle,
            pid=process.pid,
            status=_shown(process.status),
            stdin=process.names.stdin,
            stdout=process.names.stdout,
            stderr=process.names.stderr,
            terminal=process.names.terminal,
            exec_id=request.exec_id,
        )
        if process.exit is not None:
            reply.exit_status = process.exit.status
            _stamp(reply.exited_at, process.exit.at)
        return reply

    def pids(self, request: task_pb2.PidsRequest) -> task_pb2.PidsResponse:
        """The stub, while the container lives: containerd takes an empty answer for a leaked shim."""
        container = self.sandbox.find(request.id)
        reply = task_pb2.PidsResponse()
        if container.init.exit is None:
            reply.processes.add(pid=container.init.pid)
            for process in tuple(container.execs.values()):
                if process.status is Status.RUNNING:
                    reply.processes.append(_exec_info(process))
        return reply

    def stats(self, request: task_pb2.StatsRequest) -> task_pb2.StatsResponse:
        """The guest's counters."""
        measured = metrics.metrics(self.sandbox.find(request.id).stats())
        reply = task_pb2.StatsResponse()
        reply.stats.type_url = metrics.TYPE_URL
        reply.stats.value = measured.SerializeToString()
        return reply

    def connect(self, request: task_pb2.ConnectRequest) -> task_pb2.ConnectResponse:
        """Never an error: containerd asks when it loads tasks after a restart."""
        container = self.sandbox.containers.get(request.id)
        pid = container.init.pid if container is not None else 0
        return task_pb2.ConnectResponse(shim_pid=os.getpid(), task_pid=pid)

    def shutdown(self, _request: task_pb2.ShutdownRequest) -> empty_pb2.Empty:
        """End the process if no task is left; containerd asks after every deleted task, and executes `delete` next.

        That need not do anything where nothing is left, which is worth waiting for: the pod is being taken down (3 - 15 ms).
        """
        if not self.sandbox.containers:
            answer, self._last_answer = self._last_answer, None
            if answer is not None and self.sandbox.await_end(TAKE_DOWN):
                deleted.leave(*answer)
            self._shut_down()
        return EMPTY

    def _answer_later(self, bundle: str, answer: bytes) -> None:
        """For `delete`: of a container whose pod goes on nothing is left now."""
        if self.sandbox.containers:
            deleted.leave(bundle, answer)
        else:
            self._last_answer = bundle, answer

    def remove(self, container_id: str) -> None:
        """Delete a task that nobody will delete (autoremove.py)."""
        try:
            self.delete(task_pb2.DeleteRequest(id=container_id))
        except errors.HakoError as exc:
            self._log("warn", f"remove {container_id}: {exc}")

    # What the sandbox tells (container.Listener).

    def exited(self, container: Container, process: GuestProcess, exit: Exit) -> None:
        """A process has ended."""
        event = events_pb2.TaskExit(container_id=container.id, id=process.id, pid=process.pid, exit_status=exit.status)
        _stamp(event.exited_at, exit.at)
        self._publisher.publish(event)

    def out_of_memory(self, container: Container) -> None:
        """A process was killed for memory."""
        self._publisher.publish(events_pb2.TaskOOM(container_id=container.id))


def _nothing() -> None:
    """What is done unless somebody wants more."""


def _shown(status: Status) -> int:
    return int(status) if status in (Status.CREATED, Status.RUNNING, Status.STOPPED, Status.PAUSED) else 0


def _traced(name: str, method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The method with its span kept as a call's."""

    def called(request: Any) -> Any:
        with trace.Span(name, getattr(request, "exec_id", "") or request.id, trace.CALL):
            return method(request)

    called.__name__ = method.__name__
    return called


def _deleted(process: GuestProcess) -> task_pb2.DeleteResponse:
    reply = task_pb2.DeleteResponse(pid=process.pid)
    if process.exit is not None:
        reply.exit_status = process.exit.status
        _stamp(reply.exited_at, process.exit.at)
    return reply


def _exec_info(process: GuestProcess) -> types_pb2.ProcessInfo:
    info = types_pb2.ProcessInfo(pid=process.pid)
    info.info.type_url = PROCESS_DETAILS
    info.info.value = options_pb2.ProcessDetails(exec_id=process.exec_id).SerializeToString()
    return info


def _stamp(target: timestamp_pb2.Timestamp, nanoseconds: int) -> None:
    target.seconds, target.nanos = divmod(nanoseconds, 1_000_000_000)
