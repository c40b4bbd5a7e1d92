"""The agent's RPC surface: grpc.AgentService and grpc.Health, each method with what it calls.

Owns no state. A method takes the request apart, calls the one module whose matter it is, and answers;
`_served` around each logs it and turns errors into statuses. A method that must wait returns a Deferred.
Called by the ttrpc server. What the methods mean is in agent/api/README.md.
"""

from __future__ import annotations

from time import monotonic_ns

from agent import VERSION, container_devices, guest, log, network, spans, storage
from agent.api import agent_pb2, csi_pb2, empty_pb2, health_pb2, pool_pb2, trace_pb2, types_pb2
from agent.errors import AgentError, AlreadyExists, InvalidSpec, Unsupported, step_error
from agent.guest import copyfile, metrics
from agent.ttrpc.call import Deferred

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from agent.process.process import Process
    from agent.sandbox import Sandbox
    from agent.ttrpc.call import Call

API_VERSION = "0.0.1"
"""Kata's, which its shim reports"""
TRACED = {
    "CreateSandbox": "", "CreateContainer": "container_id", "StartContainer": "container_id", "ExecProcess": "exec_id",
    "UpdateInterface": "", "UpdateRoutes": "",
}  # fmt: skip
"""Methods whose spans are kept, and which field of the request says for whom. (To ask a message for a field that it does not
have is 500 pieces of code that a clone has not translated: the words of the error.)
"""
FEATURES = ("hako.oci", "hako.stdio-streams", "hako.stats-pids")

MAX_SIGNAL = 64
MAX_WINDOW = 0xFFFF

_EMPTY = empty_pb2.Empty()


class Service:
    """`on_destroyed` is called when DestroySandbox was carried out; the answer is still to be sent then.

    `on_exercise` runs a throw-away pod.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        is_init: bool,
        on_destroyed: Callable[[], None],
        on_exercise: Callable[[pool_pb2.ExerciseRequest], None],
    ) -> None:
        self._sandbox = sandbox
        self._is_init = is_init
        self._on_destroyed = on_destroyed
        self._on_exercise = on_exercise

    def services(self) -> dict[str, dict[str, tuple[Any, Callable[[Any, Call], Any]]]]:
        """The table that the ttrpc server wants."""
        return {
            "grpc.AgentService": self._agent_methods(),
            "grpc.Health": {
                "Check": (health_pb2.CheckRequest, _served(self._check)),
                "Version": (health_pb2.CheckRequest, _served(self._version)),
            },
            "hako.Trace": {"Spans": (trace_pb2.SpansRequest, _served(self._told_spans))},
            "hako.Pool": {"Exercise": (pool_pb2.ExerciseRequest, _served(self._exercise))},
        }

    def _agent_methods(self) -> dict[str, tuple[Any, Callable[[Any, Call], Any]]]:
        a = agent_pb2
        methods: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "CreateSandbox": (a.CreateSandboxRequest, self._create_sandbox),
            "DestroySandbox": (a.DestroySandboxRequest, self._destroy_sandbox),
            "UpdateEphemeralMounts": (a.UpdateEphemeralMountsRequest, self._update_ephemeral_mounts),
            "RemoveStaleVirtiofsShareMounts": (
                a.RemoveStaleVirtiofsShareMountsRequest,
                self._remove_stale_mounts,
            ),
            "CreateContainer": (a.CreateContainerRequest, self._create_container),
            "StartContainer": (a.StartContainerRequest, self._start_container),
            "RemoveContainer": (a.RemoveContainerRequest, self._remove_container),
            "UpdateContainer": (a.UpdateContainerRequest, self._update_container),
            "StatsContainer": (a.StatsContainerRequest, self._stats_container),
            "PauseContainer": (a.PauseContainerRequest, self._pause_container),
            "ResumeContainer": (a.ResumeContainerRequest, self._resume_container),
            "GetOOMEvent": (a.GetOOMEventRequest, self._get_oom_event),
            "ExecProcess": (a.ExecProcessRequest, self._exec_process),
            "SignalProcess": (a.SignalProcessRequest, self._signal_process),
            "WaitProcess": (a.WaitProcessRequest, self._wait_process),
            "WriteStdin": (a.WriteStreamRequest, self._write_stdin),
            "ReadStdout": (a.ReadStreamRequest, self._read_stdout),
            "ReadStderr": (a.ReadStreamRequest, self._read_stderr),
            "CloseStdin": (a.CloseStdinRequest, self._close_stdin),
            "TtyWinResize": (a.TtyWinResizeRequest, self._tty_win_resize),
            "UpdateInterface": (a.UpdateInterfaceRequest, self._update_interface),
            "UpdateRoutes": (a.UpdateRoutesRequest, self._update_routes),
            "ListInterfaces": (a.ListInterfacesRequest, self._list_interfaces),
            "ListRoutes": (a.ListRoutesRequest, self._list_routes),
            "AddARPNeighbors": (a.AddARPNeighborsRequest, self._add_arp_neighbors),
            "GetGuestDetails": (a.GuestDetailsRequest, self._get_guest_details),
            "GetMetrics": (a.GetMetricsRequest, self._get_metrics),
            "GetVolumeStats": (a.VolumeStatsRequest, self._get_volume_stats),
            "OnlineCPUMem": (a.OnlineCPUMemRequest, self._online_cpu_mem),
            "MemHotplugByProbe": (a.MemHotplugByProbeRequest, self._mem_hotplug_by_probe),
            "SetGuestDateTime": (a.SetGuestDateTimeRequest, self._set_guest_date_time),
            "ReseedRandomDev": (a.ReseedRandomDevRequest, self._reseed_random_dev),
            "CopyFile": (a.CopyFileRequest, self._copy_file),
            "AddSwapPath": (a.AddSwapPathRequest, self._add_swap_path),
            "AddSwap": (a.AddSwapRequest, _refused("swap is added by path: AddSwapPath")),
            "GetIPTables": (a.GetIPTablesRequest, _refused("the guest has no iptables")),
            "SetIPTables": (a.SetIPTablesRequest, _refused("the guest has no iptables")),
            "SetPolicy": (a.SetPolicyRequest, _refused("the agent enforces no policy")),
            "ResizeVolume": (a.ResizeVolumeRequest, _refused("volumes cannot be resized in the guest")),
            "GetDiagnosticData": (a.GetDiagnosticDataRequest, _refused("there is no diagnostic data")),
            "MemAgentMemcgSet": (a.MemAgentMemcgConfig, _refused("there is no memory agent")),
            "MemAgentCompactSet": (a.MemAgentCompactConfig, _refused("there is no memory agent")),
        }
        return {
            name: (request, _served(_traced(name, method, TRACED[name]) if name in TRACED else method))
            for name, (request, method) in methods.items()
        }

    # --- health ---------------------------------------------------------------------------------------------

    def _check(self, _request: health_pb2.CheckRequest) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    def _version(self, _request: health_pb2.CheckRequest) -> health_pb2.VersionCheckResponse:
        return health_pb2.VersionCheckResponse(grpc_version=API_VERSION, agent_version=VERSION)

    def _told_spans(self, _request: trace_pb2.SpansRequest) -> trace_pb2.SpansResponse:
        response = trace_pb2.SpansResponse(now=monotonic_ns())
        for name, object, begin, end in spans.all():
            response.spans.add(name=name, object=object, kind=spans.KIND, begin=begin, end=end)
        return response

    def _exercise(self, request: pool_pb2.ExerciseRequest) -> empty_pb2.Empty:
        if self._sandbox.created:
            raise AlreadyExists("sandbox", "of a pod")
        self._on_exercise(request)
        return _EMPTY

    # --- sandbox --------------------------------------------------------------------------------------------

    def _create_sandbox(self, request: agent_pb2.CreateSandboxRequest) -> empty_pb2.Empty:
        if request.seed:
            guest.reseed(request.seed)
        if request.time:
            guest.set_clock(request.time // 10**9, request.time // 1000 % 10**6)
        self._sandbox.create(request)
        return _EMPTY

    def _destroy_sandbox(self, _request: agent_pb2.DestroySandboxRequest) -> empty_pb2.Empty:
        self._sandbox.destroy()
        self._on_destroyed()
        return _EMPTY

    def _update_ephemeral_mounts(self, request: agent_pb2.UpdateEphemeralMountsRequest) -> empty_pb2.Empty:
        self._sandbox.update_storages(request)
        return _EMPTY

    def _remove_stale_mounts(
        self, _request: agent_pb2.RemoveStaleVirtiofsShareMountsRequest
    ) -> empty_pb2.Empty:
        """Nothing is ever stale: the agent mounts the share once and binds nothing in it."""
        return _EMPTY

    # --- containers -----------------------------------------------------------------------------------------

    def _create_container(self, request: agent_pb2.CreateContainerRequest) -> empty_pb2.Empty:
        self._sandbox.create_container(request)
        return _EMPTY

    def _start_container(self, request: agent_pb2.StartContainerRequest) -> empty_pb2.Empty:
        self._sandbox.start_container(request.container_id)
        return _EMPTY

    def _remove_container(self, request: agent_pb2.RemoveContainerRequest) -> empty_pb2.Empty:
        self._sandbox.remove_container(request.container_id)
        return _EMPTY

    def _update_container(self, request: agent_pb2.UpdateContainerRequest) -> empty_pb2.Empty:
        self._sandbox.container(request.container_id).update(request.resources)
        return _EMPTY

    def _stats_container(self, request: agent_pb2.StatsContainerRequest) -> agent_pb2.StatsContainerResponse:
        container = self._sandbox.container(request.container_id)
        return agent_pb2.StatsContainerResponse(
            cgroup_stats=container.stats(), network_stats=network.counters(), pids=container.pids()
        )

    def _pause_container(self, request: agent_pb2.PauseContainerRequest) -> empty_pb2.Empty:
        self._sandbox.container(request.container_id).pause()
        return _EMPTY

    def _resume_container(self, request: agent_pb2.ResumeContainerRequest) -> empty_pb2.Empty:
        self._sandbox.container(request.container_id).resume()
        return _EMPTY

    def _get_oom_event(self, _request: agent_pb2.GetOOMEventRequest) -> Deferred:
        deferred = Deferred()
        cancel = self._sandbox.oom.next(lambda cid: deferred.resolve(agent_pb2.OOMEvent(container_id=cid)))
        deferred.on_cancel(cancel)
        return deferred

    # --- processes ------------------------------------------------------------------------------------------

    def _exec_process(self, request: agent_pb2.ExecProcessRequest) -> empty_pb2.Empty:
        self._sandbox.exec(request)
        return _EMPTY

    def _signal_process(self, request: agent_pb2.SignalProcessRequest) -> empty_pb2.Empty:
        if request.signal > MAX_SIGNAL:
            raise InvalidSpec("signal", f"{request.signal} is no signal")
        self._sandbox.container(request.container_id).signal(request.exec_id, request.signal)
        return _EMPTY

    def _wait_process(self, request: agent_pb2.WaitProcessRequest) -> Deferred:
        deferred = Deferred()

        def exited(status: int) -> bool:
            heard = not deferred.settled
            deferred.resolve(agent_pb2.WaitProcessResponse(status=status))
            return heard

        self._sandbox.wait(request.container_id, request.exec_id, exited)
        return deferred

    def _process(
        self,
        request: agent_pb2.WriteStreamRequest
        | agent_pb2.ReadStreamRequest
        | agent_pb2.CloseStdinRequest
        | agent_pb2.TtyWinResizeRequest,
    ) -> Process:
        return self._sandbox.process(request.container_id, request.exec_id)

    def _write_stdin(self, request: agent_pb2.WriteStreamRequest) -> Deferred:
        deferred = Deferred()

        def written(count: int, error: Exception | None) -> None:
            if count or error is None:
                deferred.resolve(agent_pb2.WriteStreamResponse(len=count))
            else:
                deferred.fail(step_error("write stdin", error) if isinstance(error, OSError) else error)

        self._process(request).stdio.write_stdin(request.data, written)
        return deferred

    def _read_stdout(self, request: agent_pb2.ReadStreamRequest) -> Deferred:
        return self._read(request, 1)

    def _read_stderr(self, request: agent_pb2.ReadStreamRequest) -> Deferred:
        return self._read(request, 2)

    def _read(self, request: agent_pb2.ReadStreamRequest, which: int) -> Deferred:
        if not request.len:
            raise InvalidSpec("len", "must not be 0")
        deferred = Deferred()
        cancel = self._process(request).stdio.read(
            which, request.len, lambda data: deferred.resolve(agent_pb2.ReadStreamResponse(data=data))
        )
        deferred.on_cancel(cancel)
        return deferred

    def _close_stdin(self, request: agent_pb2.CloseStdinRequest) -> empty_pb2.Empty:
        self._process(request).stdio.close_stdin()
        return _EMPTY

    def _tty_win_resize(self, request: agent_pb2.TtyWinResizeRequest) -> empty_pb2.Empty:
        if max(request.row, request.column) > MAX_WINDOW:
            raise InvalidSpec("row", f"{request.row} by {request.column} is no terminal's size")
        self._process(request).stdio.resize(request.row, request.column)
        return _EMPTY

    # --- network --------------------------------------------------------------------------------------------

    def _update_interface(self, request: agent_pb2.UpdateInterfaceRequest) -> types_pb2.Interface:
        return network.update_interface(request.interface, self._sandbox.hotplug_seconds)

    def _update_routes(self, request: agent_pb2.UpdateRoutesRequest) -> agent_pb2.Routes:
        return network.update_routes(request.routes.Routes)

    def _list_interfaces(self, _request: agent_pb2.ListInterfacesRequest) -> agent_pb2.Interfaces:
        return network.list_interfaces()

    def _list_routes(self, _request: agent_pb2.ListRoutesRequest) -> agent_pb2.Routes:
        return network.list_routes()

    def _add_arp_neighbors(self, request: agent_pb2.AddARPNeighborsRequest) -> empty_pb2.Empty:
        network.add_neighbours(request.neighbors.ARPNeighbors)
        return _EMPTY

    # --- the guest ------------------------------------------------------------------------------------------

    def _get_guest_details(self, request: agent_pb2.GuestDetailsRequest) -> agent_pb2.GuestDetailsResponse:
        details = agent_pb2.AgentDetails(
            version=VERSION,
            init_daemon=self._is_init,
            device_handlers=container_devices.names(),
            storage_handlers=storage.names(),
            supports_seccomp=True,
            extra_features=FEATURES,
        )
        return guest.details(request, details)

    def _get_metrics(self, _request: agent_pb2.GetMetricsRequest) -> agent_pb2.Metrics:
        return agent_pb2.Metrics(metrics=metrics.text())

    def _get_volume_stats(self, request: agent_pb2.VolumeStatsRequest) -> csi_pb2.VolumeStatsResponse:
        return guest.volume_stats(request.volume_guest_path)

    def _online_cpu_mem(self, request: agent_pb2.OnlineCPUMemRequest) -> empty_pb2.Empty:
        seconds = self._sandbox.hotplug_seconds
        guest.online(wait=request.wait, cpus=request.nb_cpus, cpu_only=request.cpu_only, seconds=seconds)
        return _EMPTY

    def _mem_hotplug_by_probe(self, request: agent_pb2.MemHotplugByProbeRequest) -> empty_pb2.Empty:
        guest.probe_memory(request.memHotplugProbeAddr)
        return _EMPTY

    def _set_guest_date_time(self, request: agent_pb2.SetGuestDateTimeRequest) -> empty_pb2.Empty:
        guest.set_clock(request.Sec, request.Usec)
        return _EMPTY

    def _reseed_random_dev(self, request: agent_pb2.ReseedRandomDevRequest) -> empty_pb2.Empty:
        guest.reseed(request.data)
        return _EMPTY

    def _copy_file(self, request: agent_pb2.CopyFileRequest) -> empty_pb2.Empty:
        copyfile.copy(request)
        return _EMPTY

    def _add_swap_path(self, request: agent_pb2.AddSwapPathRequest) -> empty_pb2.Empty:
        guest.add_swap(request.path)
        return _EMPTY


def _served(method: Callable[[Any], Any]) -> Callable[[Any, Call], Any]:
    """The method as the server calls it: logged, and a system call's error said as the step that failed."""

    def serve(request: Any, call: Call) -> Any:
        if log.tells_calls():
            log.debug(f"{call.method}{_ids(request)}")
        try:
            return method(request)
        except AgentError as error:
            log.debug(f"{call.method}: {error}")
            raise
        except OSError as error:
            log.exception(call.method, error)
            raise step_error(call.method, error) from error

    return serve


def _traced(name: str, method: Callable[[Any], Any], field: str) -> Callable[[Any], Any]:
    def trace(request: Any) -> Any:
        begin = monotonic_ns()
        try:
            return method(request)
        finally:
            spans.keep(name, getattr(request, field) if field else "", begin)

    return trace


def _refused(reason: str) -> Callable[[Any], Any]:
    def refuse(_request: Any) -> Any:
        raise Unsupported(reason)

    return refuse


def _ids(request: Any) -> str:
    """ " container exec" of a request, as far as it has them."""
    return "".join(
        f" {getattr(request, name)}" for name in ("container_id", "exec_id") if hasattr(request, name)
    )
