"""The sandbox of the guest: what its containers share, and the containers by their ids.

Owns: the shared namespaces, the storages, the registry of containers, OOM events, the raw streams' hand-over.
What a container is and does is agent.container. Called by agent.service, in the order of the protocol:

    create()             once: host name, namespaces, storages, DNS
    create_container()   storages, devices, then the container; its program waits
    start_container() exec() wait() ...   by container(cid) where nothing else is to be done
    remove_container()   the container, then its storages
    destroy()            everything; the agent ends after it
"""

from __future__ import annotations

import os

from agent import (
    cgroups,
    container_devices,
    log,
    modules,
    network,
    shared_namespaces,
    storage,
)
from agent.container.container import Container
from agent.container.standby import Standby
from agent.errors import FAILED_PRECONDITION, AgentError, AlreadyExists, InvalidSpec, NotFound
from agent.guest import copyfile
from agent.oom import OomEvents
from agent.process.stdio import StdioPlan
from agent.sandbox_storages import SandboxStorages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.api import agent_pb2, oci_pb2
    from agent.config import Config
    from agent.linux.loop import Loop
    from agent.process.process import Process
    from agent.streams import Streams

BUNDLES = "/run/kata-containers"
MAX_ID = 128
MAX_CONTAINERS = 1024
STANDBY_CGROUP = "/hako-first"
_CONTAINER_PREFIX = "container:"
_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_ID = _FIRST | frozenset("_.-")


class NoSandbox(AgentError):
    """CreateSandbox comes first."""

    code = FAILED_PRECONDITION

    def __init__(self) -> None:
        super().__init__("the sandbox was not created")


def check_id(field: str, value: str) -> str:
    """An id as paths may hold it: [A-Za-z0-9][A-Za-z0-9_.-]*, at most MAX_ID. Raises InvalidSpec."""
    if not value or len(value) > MAX_ID or value[0] not in _FIRST or not _ID.issuperset(value):
        raise InvalidSpec(field, f"{value[:MAX_ID]!r} is not an id")
    return value


class Sandbox:
    """See the module. One thread; every method raises AgentError."""

    def __init__(self, loop: Loop, config: Config, streams: Streams) -> None:
        self._loop = loop
        self._config = config
        self._streams = streams
        self._created = False
        self._namespaces: dict[str, str] = {}
        self._storages = SandboxStorages(config.hotplug_seconds, config.share)
        self._containers: dict[str, Container] = {}
        self._points: dict[str, list[str]] = {}
        """container id -> its mount points"""
        self._first: Container | None = None
        self._standby: Standby | None = None
        self._read_by_rpc: set[tuple[str, str]] = set()
        """(container, exec) whose output callers may still ask for after its exit"""
        self.oom = OomEvents(loop)

    @property
    def hotplug_seconds(self) -> float:
        """How long a device that was plugged may take to appear."""
        return self._config.hotplug_seconds

    @property
    def created(self) -> bool:
        """Whether it is there: from CreateSandbox to DestroySandbox."""
        return self._created

    # --- the sandbox itself ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make what is the same for every sandbox; `create` does it unless a template's agent has. Idempotent."""
        if not self._namespaces:
            os.makedirs(BUNDLES, mode=0o755, exist_ok=True)
            self._namespaces = shared_namespaces.create()

    def stand_by(self) -> None:
        """`prepare`, and the first container's process, as far as it is the same for every container. Raises AgentError."""
        self.prepare()
        self._storages.prepare()
        if self._config.cgroups and self._standby is None:
            self._standby = Standby(self._namespaces, cgroups.Cgroup(STANDBY_CGROUP))

    def unprepare(self) -> None:
        """Give back what `prepare` and `stand_by` made, of which there is one at a time, and the storages. Idempotent."""
        standby, self._standby = self._standby, None
        if standby is not None:
            standby.end()
        self._storages.release_all()
        shared_namespaces.remove()
        self._namespaces = {}

    def create(self, request: agent_pb2.CreateSandboxRequest) -> None:
        """Make what containers share. Nothing is left if it fails."""
        if self._created:
            raise AlreadyExists("sandbox", request.sandbox_id)
        for module in request.kernel_modules:
            modules.load(module.name, " ".join(module.parameters))
        self.prepare()
        try:
            if request.hostname:
                shared_namespaces.set_hostname(request.hostname)
            self._storages.acquire(request.storages)
            if request.dns:
                network.write_dns(request.dns)
        except BaseException:
            self.unprepare()
            raise
        self._created = True

    def destroy(self) -> None:
        """Remove everything. What cannot be removed is logged: the machine is about to be switched off."""
        for cid in list(self._containers):
            try:
                self.remove_container(cid)
            except AgentError as error:
                log.error(f"remove container {cid}: {error}")
        self.unprepare()
        self._created = False

    def update_storages(self, request: agent_pb2.UpdateEphemeralMountsRequest) -> None:
        """New sizes for tmpfs mounts."""
        storage.update(request.storages)

    # --- containers -----------------------------------------------------------------------------------------

    def container(self, cid: str) -> Container:
        """Raises NotFound."""
        if cid not in self._containers:
            raise NotFound("container", cid[:MAX_ID])
        return self._containers[cid]

    def create_container(self, request: agent_pb2.CreateContainerRequest) -> None:
        """Make a container up to just before its program. Nothing is left if it fails."""
        if not self._created:
            raise NoSandbox
        cid = check_id("container_id", request.container_id)
        if cid in self._containers:
            raise AlreadyExists("container", cid)
        if len(self._containers) >= MAX_CONTAINERS:
            raise InvalidSpec("container_id", f"the sandbox has {MAX_CONTAINERS} containers already")
        points = self._storages.acquire(request.storages)
        try:
            container = self._make_container(cid, request)
        except BaseException:
            self._storages.release(points)
            _remove_bundle(cid)
            raise
        self._containers[cid] = container
        self._points[cid] = points
        if self._first is None:
            self._first = container
        self.oom.watch(cid, container.cgroup)

    def _make_container(self, cid: str, request: agent_pb2.CreateContainerRequest) -> Container:
        spec = request.OCI
        container_devices.rewrite(spec, request.devices, self._config.hotplug_seconds)
        self._resolve_namespaces(spec)
        pid_namespace = self._pod_pid_namespace(request)
        container = Container(
            self._loop,
            cid,
            spec,
            _make_bundle(cid),
            self._cgroup(cid, spec),
            self._namespaces,
            pid_namespace,
            request.string_user if request.HasField("string_user") else None,
        )
        stdio = self._claim_stdio(request, terminal=spec.Process.Terminal)
        container.create(stdio, self._take_standby(spec, pid_namespace))
        return container

    def _take_standby(self, spec: oci_pb2.Spec, pid_namespace: str | None) -> Standby | None:
        """For the first container that it fits."""
        if self._standby is None or pid_namespace or not self._standby.fits(spec):
            return None
        standby, self._standby = self._standby, None
        return standby

    def _cgroup(self, cid: str, spec: oci_pb2.Spec) -> cgroups.Cgroup:
        if not self._config.cgroups:
            return cgroups.NullCgroup()
        return cgroups.Cgroup(cgroups.guest_path(spec.Linux.CgroupsPath, cid))

    def _pod_pid_namespace(self, request: agent_pb2.CreateContainerRequest) -> str | None:
        """The first container's, if the request asks for the pod's and there is one."""
        if not request.sandbox_pidns or self._first is None:
            return None
        return self._first.namespace_path("pid") or None

    def _resolve_namespaces(self, spec: oci_pb2.Spec) -> None:
        """hako: the path "container:ID" is that container's namespace."""
        for index, namespace in enumerate(spec.Linux.Namespaces):
            if namespace.Path.startswith(_CONTAINER_PREFIX):
                owner = self.container(namespace.Path.removeprefix(_CONTAINER_PREFIX))
                path = owner.namespace_path(namespace.Type)
                if not path:
                    field = f"linux.namespaces[{index}].path"
                    raise InvalidSpec(field, f"container {owner.id} has no {namespace.Type} namespace")
                namespace.Path = path

    def _claim_stdio(
        self, request: agent_pb2.CreateContainerRequest | agent_pb2.ExecProcessRequest, *, terminal: bool
    ) -> StdioPlan:
        """The raw streams that the request names, which are the plan's from now on; without any, RPC."""
        wanted = (
            ("stdin_port", request.stdin_port),
            ("stdout_port", request.stdout_port),
            ("stderr_port", request.stderr_port),
        )
        if not any(port for _, port in wanted):
            return StdioPlan(terminal=terminal, rpc=True)
        claimed: list[int | None] = []
        try:
            for field, port in wanted:
                claimed.append(self._streams.claim(port, field) if port else None)
        except BaseException:
            for fd in claimed:
                if fd is not None:
                    os.close(fd)
            raise
        return StdioPlan(*claimed, terminal=terminal)

    def start_container(self, cid: str) -> None:
        """Let its program run."""
        container = self.container(cid)
        try:
            container.start()
        finally:
            self._tell_warnings(container)

    def exec(self, request: agent_pb2.ExecProcessRequest) -> None:
        """Run a further process."""
        container = self.container(request.container_id)
        exec_id = check_id("exec_id", request.exec_id)
        stdio = self._claim_stdio(request, terminal=request.process.Terminal)
        string_user = request.string_user if request.HasField("string_user") else None
        container.exec(exec_id, request.process, stdio, string_user)
        if stdio.rpc:
            self._read_by_rpc.add((container.id, exec_id))

    def remove_container(self, cid: str) -> None:
        """Kill what is left of it and give everything back; may be repeated after DeadlineExceeded."""
        container = self.container(cid)
        self.oom.check(cid)
        self.oom.forget(cid)
        container.remove()
        self._tell_warnings(container)
        del self._containers[cid]
        if self._first is container:
            self._first = None
        self._read_by_rpc = {entry for entry in self._read_by_rpc if entry[0] != cid}
        self._storages.release(self._points.pop(cid))
        _remove_bundle(cid)
        try:
            copyfile.forget(cid)
        except AgentError as error:
            log.error(f"container {cid}: {error}")

    def _tell_warnings(self, container: Container) -> None:
        warnings, container.warnings = container.warnings, []
        for warning in warnings:
            log.error(f"container {container.id}: {warning}")

    # --- processes ------------------------------------------------------------------------------------------

    def process(self, cid: str, exec_id: str) -> Process:
        """Raises NotFound."""
        return self.container(cid).process(exec_id)

    def wait(self, cid: str, exec_id: str, exited: Callable[[int], bool]) -> None:
        """`exited(status)` once the process has; it returns whether somebody was there to hear it.

        An exec is forgotten then; one without raw streams when its output was taken, too.
        """
        container = self.container(cid)
        process = container.process(exec_id)

        def over(process: Process) -> None:
            self.oom.check(cid)
            heard = exited(process.exit_status if process.exit_status is not None else 255)
            if not heard or process is container.init:
                return
            if (cid, process.exec_id) in self._read_by_rpc:
                process.stdio.on_drained(lambda: self._forget(container, process.exec_id))
            else:
                self._forget(container, process.exec_id)

        process.on_exit(over)

    def _forget(self, container: Container, exec_id: str) -> None:
        self._read_by_rpc.discard((container.id, exec_id))
        container.forget(exec_id)


def _make_bundle(cid: str) -> str:
    path = f"{BUNDLES}/{cid}"
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def _remove_bundle(cid: str) -> None:
    """Only the directory itself: whatever else is in it is not ours."""
    try:
        os.rmdir(f"{BUNDLES}/{cid}")
    except OSError:
        pass  # not there, or somebody else uses it
