"""One pod: its machine and its containers.

The engine's order: Create of the first container (the pause container of a pod, or the only one) boots the
machine; further containers join; the machine ends when the first container is deleted or no container is
left, not before, so that a container can be started again in a living pod. Owns: which container is the
first, when the machine comes up and goes down, what its unexpected end means (every process has exited,
137). Must not know: ttrpc, events, how a machine is built (builder.py).

Thread-safe: each request runs in a thread of its own. `_building` is held while the machine comes up or
goes down.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Protocol

from shim import cgroups, errors, paths
from shim.config import FITTING
from shim.oci import grouping
from shim.sandbox import overrides, ownfiles, stub
from shim.sandbox import plan as planning
from shim.sandbox.container import Container, Listener
from shim.sandbox.fate import Fate
from shim.sandbox.hostside import Request
from shim.sandbox.store import Store
from shim.trace import Span

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from agent.linux.loop import Loop
    from shim.agent_client import AgentClient
    from shim.cgroups import Cgroup
    from shim.config import Config
    from shim.oci.spec import Spec
    from shim.sandbox.ahead import Ahead
    from shim.sandbox.placement import Files


CREATES_END = 20.0  # seconds for Creates that are under way to take back what they have done


class Machine(Protocol):
    """A VM that is up, with everything around it (builder.py)."""

    agent: AgentClient
    files: Files
    vcpus: int
    agent_is_ours: bool
    """whether the agent knows what Kata's does not"""

    @property
    def streams_by_rpc(self) -> bool:
        """Whether the agent knows no stream connections."""

    def open_stream(self) -> tuple[socket, int]:
        """A stream to the agent's stdio port and the port by which the agent knows it."""

    def on_end(self, callback: Callable[[str], None]) -> None:
        """Call `callback(reason)` once, in a thread of its own, when the machine or a daemon of it has
        ended.
        """

    def await_sandbox(self) -> None:
        """Until the sandbox is there in the guest. Raises HakoError."""

    def agent_left(self) -> None:
        """The connection to the agent has ended. May wait a moment for the reason."""

    def rescan_network(self) -> None:
        """Carry links that came since the boot into the machine."""

    def expire(self) -> None:
        """Nothing is wanted of the guest any more; `close` will follow. Repeatable."""

    def close(self) -> None:
        """End everything. Repeatable."""


class Factory(Protocol):
    """What makes a Machine and the cgroups around it; tests have their own."""

    def plan(self, config: Config, request: Request, sandbox_id: str, namespace: str) -> planning.SandboxPlan:
        """The plan for the pod whose first container this is."""

    def take_ahead(self, request: Request) -> Ahead | None:
        """What was begun for the pod whose first container this is, once: `build` will finish it."""

    def build(self, config: Config, plan: planning.SandboxPlan, netns: str, store: Store, fate: Fate) -> Machine:
        """Boot it; `netns` is the host path of the pod's network namespace. Whatever ends `fate` ends the boot too.

        Raises HakoError.
        """

    def cgroup_of(self, container_id: str, spec: Spec) -> Cgroup:
        """The cgroup of a container on the host."""


class Sandbox:
    """See the module. Implements container.Home."""

    def __init__(
        self,
        sandbox_id: str,
        namespace: str,
        config: Config,
        loop: Loop,
        listener: Listener,
        factory: Factory,
        log: Callable[[str, str], None],
    ) -> None:
        self.sandbox_id = sandbox_id
        self.namespace = namespace
        self.config = config
        self._base_config = config
        self.loop = loop
        self.listener = listener
        self.log = log
        self.in_pod = False
        self.containers: dict[str, Container] = {}
        self._factory = factory
        self._building = threading.RLock()
        self._guard = threading.Lock()
        self._creating = 0  # Creates that are under way
        self._settled = threading.Condition(self._guard)
        self._store: Store | None = None
        self._plan: planning.SandboxPlan | None = None
        self._machine: Machine | None = None
        self._fate = Fate()
        self._netns_fd = -1
        self._ahead: Ahead | None = None
        self._end_reason = ""
        self._ended = threading.Event()
        self._ending: list[threading.Thread] = []

    def create(self, request: Request) -> int:
        """Create a container, and the machine with the first one; its host pid. Raises HakoError."""
        container = self._admit(request)
        try:
            return self._carry_out(container, request)
        finally:
            with self._guard:
                self._creating -= 1
                self._settled.notify_all()

    def _carry_out(self, container: Container, request: Request) -> int:
        try:
            container.prepare(self.netns)
            built = self._ensure_machine()
            try:
                return container.create_in_guest()
            finally:
                if built is not None:  # not before: the agent takes calls in their order
                    self._await_oom(built)
        except BaseException as exc:
            reason = self._reason(exc)
            container.discard()
            self._dismiss(container, self.stop)
            if reason:
                raise errors.Unavailable(reason, object=request.id) from exc
            raise

    def _reason(self, exc: BaseException) -> str:
        """Why the machine ended, if that is what `exc` follows from; it may be told a moment later."""
        if isinstance(exc, errors.Unavailable) and self._machine is not None:
            self._ended.wait(1.0)
        return self._end_reason

    def start(self, container: Container) -> int:
        """Start a container; links that its hooks or its engine added are carried in before."""
        if container.id == self.sandbox_id and self._machine is not None:
            with Span("network again", container.id):
                self._machine.rescan_network()
        return container.start()

    def delete(self, container: Container) -> None:
        """Delete a container; the machine too when it was the first or the last one.

        Then nothing of the container is left, and the machine is taken down. Only a pod in a network namespace of its
        engine's, which is taken away next, waits for the end of that.
        """
        waits = self._plan is not None and self._plan.netns
        container.delete(machine_ends=self._machine_ends_with(container))
        self._dismiss(container, self.stop if waits else self._let_go)

    def _machine_ends_with(self, container: Container) -> bool:
        with self._guard:
            return container.id == self.sandbox_id or len(self.containers) == 1

    def find(self, container_id: str) -> Container:
        """The container. Raises NotFound."""
        try:
            return self.containers[container_id]
        except KeyError:
            raise errors.NotFound("no such container", object=container_id) from None

    def stop(self) -> None:
        """End the machine and take away all that is on the host. Repeatable."""
        self._let_go()
        for thread in tuple(self._ending):
            thread.join()

    def _let_go(self) -> None:
        """Begin with that. The store, whose lock others wait for, goes last."""
        with self._building:
            parts = (self._machine, self._ahead, self._netns_fd, self._store)
            self._machine, self._ahead, self._netns_fd, self._store = None, None, -1, None
            self._ending = [thread for thread in self._ending if thread.is_alive()]
            if parts != (None, None, -1, None):
                self._ending.append(threading.Thread(target=_take_down, args=parts, name="hako-take-down"))
                self._ending[-1].start()

    def await_end(self, seconds: float) -> bool:
        """Whether nothing is left of the pod on the host, within so many seconds."""
        until = time.monotonic() + seconds
        for thread in tuple(self._ending):
            thread.join(max(until - time.monotonic(), 0))
        return not os.path.exists(paths.sandbox_dir(self.sandbox_id, self.namespace))

    def end(self) -> None:
        """End the pod because its process ends: every process is told as ended, nothing is left on the
        host.
        """
        reason = "the pod process was asked to end"
        self._fate.end(reason)  # a boot that is under way fails now
        if self.containers and not self._end_reason:
            self._machine_ended(reason)
        with self._guard:
            self._settled.wait_for(lambda: not self._creating, CREATES_END)
        self.stop()

    def abandon(self) -> None:
        """Every process of the pod has ended, because whoever made its containers has gone before their start."""
        self._machine_ended("nobody has started it")

    # What containers need (container.Home).

    @property
    def agent(self) -> AgentClient:
        """The agent. Raises Unavailable with the reason when the machine is not up."""
        return self._up().agent

    @property
    def files(self) -> Files:
        """How files reach the guest."""
        return self._up().files

    @property
    def vcpus(self) -> int:
        """CPUs of the machine."""
        return self._up().vcpus

    @property
    def store(self) -> Store:
        """The pod's state on disk."""
        assert self._store is not None
        return self._store

    @property
    def netns(self) -> str:
        """Host path of the pod's network namespace."""
        assert self._plan is not None
        return self._plan.netns or f"/proc/{os.getpid()}/fd/{self._netns_fd}"

    def cgroup_of(self, container_id: str, spec: Spec) -> Cgroup:
        """The cgroup of a container on the host."""
        return self._factory.cgroup_of(container_id, spec)

    @property
    def agent_is_ours(self) -> bool:
        """Whether the agent knows what Kata's does not."""
        return self._up().agent_is_ours

    @property
    def streams_by_rpc(self) -> bool:
        """Whether the agent knows no stream connections."""
        return self._up().streams_by_rpc

    def open_stream(self) -> tuple[socket, int]:
        """A stream to the agent."""
        return self._up().open_stream()

    def container_of_pid(self, pid: int) -> str | None:
        """The container whose stub has this host pid."""
        with self._guard:
            return next((item.id for item in self.containers.values() if item.init.pid == pid), None)

    def await_sandbox(self) -> None:
        """Until the sandbox is there in the guest."""
        self._up().await_sandbox()

    def _up(self) -> Machine:
        if self._machine is None or self._end_reason:
            raise errors.Unavailable(self._end_reason or "the sandbox is not running", object=self.sandbox_id)
        return self._machine

    def _admit(self, request: Request) -> Container:
        """Register a container; the first one brings the plan and the state file."""
        with self._building:
            if self._end_reason:
                raise errors.Unavailable(self._end_reason, object=self.sandbox_id)
            if request.id in self.containers:
                raise errors.AlreadyExists("container exists already", object=request.id)
            if self._plan is None:
                self._prepare_first(request)
            elif self._plan.own_files:
                self._check_joining(request)
            container = Container(self, request)
            with self._guard:
                self.containers[request.id] = container
                self._creating += 1
            return container

    def _check_joining(self, request: Request) -> None:
        """The guest may keep for good what it reads, because the pod was one container's with files of its own."""
        if self.config.share.cache == FITTING and not ownfiles.are_own(request.spec, request.bundle, request.rootfs):
            raise errors.Unsupported(
                "it brings files that others may change into the pod of a container that had none",
                object=request.id,
                hint=f'give the first container the annotation {grouping.GROUP} too, or set [share] cache = "auto"',
            )

    def _prepare_first(self, request: Request) -> None:
        annotations = request.spec.annotations or {}
        self.in_pod = grouping.role_of(annotations) != grouping.SINGLE
        if self._take_over(request):
            return
        self.config = overrides.apply(self._base_config, annotations)
        plan = self._factory.plan(self.config, request, self.sandbox_id, self.namespace)
        directory = paths.sandbox_dir(self.sandbox_id, self.namespace)
        self._store = Store.create(directory, self.sandbox_id, self.namespace)
        if not plan.netns:
            self._netns_fd = stub.new_netns()
        self._plan = plan

    def _take_over(self, request: Request) -> bool:
        """Whether the machine has been begun before we were asked for it."""
        self._ahead = ahead = self._factory.take_ahead(request)
        if ahead is None:
            return False
        self.config, self._plan, self._store, self._netns_fd = ahead.config, ahead.plan, ahead.store, ahead.netns_fd
        return True

    def _ensure_machine(self) -> Machine | None:
        """Build it; None if it is there."""
        with self._building:
            if self._machine is not None:
                return None
            assert self._plan is not None
            machine = self._factory.build(self.config, self._plan, self.netns, self.store, self._fate)
            self._machine = machine
        machine.on_end(self._machine_ended)
        return machine

    def _dismiss(self, container: Container, end_machine: Callable[[], None]) -> None:
        with self._guard:
            self.containers.pop(container.id, None)
            last = not self.containers
        if container.id == self.sandbox_id and not last:
            self._machine_ended("its sandbox was deleted")
        if last or container.id == self.sandbox_id:
            end_machine()
        if last:
            self._plan = None  # a later Create in this process starts anew
            self._end_reason = ""
            self._ended.clear()
            self._fate = Fate()

    def init_ended(self, container: Container) -> None:
        """The end of the pause container is the end of the pod: the others end first, and are told first."""
        if not self.in_pod or container.id != self.sandbox_id:
            return
        with self._guard:
            others = [item for item in self.containers.values() if item is not container]
        for other in others:
            other.kill_and_wait()

    def all_told(self, container: Container) -> None:
        """A container by itself has ended and said all: the guest's end takes a while, and need not wait for Delete."""
        machine = self._machine
        if not self.in_pod and container.id == self.sandbox_id and machine is not None and not machine.files.unsaved:
            machine.expire()

    def _machine_ended(self, reason: str) -> None:
        """Every process of the pod has ended with the machine; the pause container is told last."""
        self._end_reason = reason
        self._ended.set()
        self.log("error", f"sandbox {self.sandbox_id}: {reason}")
        with self._guard:
            ended = sorted(self.containers.values(), key=lambda item: item.id == self.sandbox_id)
        for container in ended:
            container.machine_died()

    def _await_oom(self, machine: Machine) -> None:
        """The call that is always under way: its failure is also how the end of the connection is noticed."""

        def told(container_id: str | None, error: errors.HakoError | None) -> None:
            if container_id is None:
                if isinstance(error, errors.Unavailable):
                    threading.Thread(target=machine.agent_left, name="hako-agent-left", daemon=True).start()
                return
            container = self.containers.get(container_id)
            if container is not None:
                container.note_oom()
            machine.agent.next_oom(told)

        machine.agent.next_oom(told)


def _take_down(machine: Machine | None, ahead: Ahead | None, netns_fd: int, store: Store | None) -> None:
    """What a pod had, its directory last: its lock tells others that somebody is still at work."""
    if machine is not None:
        machine.close()
    if ahead is not None:
        ahead.end()
    if netns_fd >= 0:
        os.close(netns_fd)
    if store is not None:
        cgroups.remove_empty(store.state["cgroup_parents"])
        store.remove()
