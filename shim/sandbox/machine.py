"""A VM that is up: what containers use of it, how its end is noticed, links that come later.

Owns: the numbering of streams, what the end of the connection to the agent means. Must not know: how it was built
(builder.py), how its parts' ends become one (fate.py). Used by sandbox.py; implements sandbox.Machine.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from agent.api import agent_pb2, types_pb2
from shim import errors
from shim.agent_client import STDIO_PORT, STREAM_FEATURE, AgentClient
from shim.hypervisor.base import Nic
from shim.network import guest as guest_network
from shim.network import netns as host_network
from shim.sandbox.fate import last_words

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from shim.config import NetworkConfig
    from shim.hypervisor.base import Vm
    from shim.hypervisor.vsock import Transport
    from shim.network.plan import NetworkPlan, NicInfo
    from shim.sandbox.fate import Fate
    from shim.sandbox.placement import Files
    from shim.sandbox.plan import SandboxPlan

STREAM_TIMEOUT = 10.0  # seconds to connect one stream
LAST_WORDS = 2.0  # seconds for a VM to end after its agent has: it switches off


class Network:
    """The links of the pod's namespace that were carried into the VM.

    `given`: the engine's namespace, which outlives the pod, so that redirects are taken out of it at the end.
    """

    def __init__(
        self,
        netns: str,
        sandbox_id: str,
        config: NetworkConfig,
        log: Callable[[str, str], None],
        *,
        given: bool,
    ) -> None:
        self._netns = netns
        self._sandbox_id = sandbox_id
        self._config = config
        self._log = log
        self._given = given
        self._plans: list[NetworkPlan] = []

    @property
    def empty(self) -> bool:
        """Whether the guest need be told nothing of it."""
        return not any(plan.nics or plan.routes or plan.neighbours for plan in self._plans)

    @property
    def taps(self) -> list[str]:
        """Names of the taps that hako made."""
        return [tap for plan in self._plans for tap in plan.taps]

    def take(self, plan: NetworkPlan) -> None:
        """Links that are carried from now on; their descriptors are ours."""
        self._plans.append(plan)
        for skipped in plan.skipped:
            self._log("warn", f"network of {self._sandbox_id}: {skipped.what}: {skipped.reason}")

    def nics(self) -> tuple[Nic, ...]:
        """The network cards of the VM at its boot."""
        return tuple(self._nic(info) for plan in self._plans for info in plan.nics)

    def configure(self, agent: AgentClient, plans: list[NetworkPlan] | None = None) -> None:
        """Tell the guest names, addresses, routes and neighbours."""
        for plan in self._plans if plans is None else plans:
            for interface in guest_network.interfaces(plan):
                request = agent_pb2.UpdateInterfaceRequest(interface=interface)
                agent.call("UpdateInterface", request, types_pb2.Interface)
            if plan.nics or plan.routes:
                routes = agent_pb2.UpdateRoutesRequest(routes=guest_network.routes(plan))
                agent.call("UpdateRoutes", routes, agent_pb2.Routes)
            if plan.neighbours:
                self._add_neighbours(agent, plan)

    def rescan(self, vm: Vm, agent: AgentClient) -> None:
        """Plug what appeared in the namespace since (Docker and `ctr run --cni` add links after Create)."""
        known = {nic.index for plan in self._plans for nic in plan.nics}
        plan = host_network.rescan(self._netns, self._sandbox_id, known)
        if not plan.nics:
            return
        self.take(plan)
        for info in plan.nics:
            vm.plug(self._nic(info))
        self.configure(agent, [plan])

    def close(self) -> None:
        """Let go of the taps, which end with their descriptors, and of the redirects to them."""
        taps = self.taps
        for plan in self._plans:
            plan.close()
        self._plans = []
        if self._given and taps:
            host_network.detach(self._netns, taps)

    def _nic(self, info: NicInfo) -> Nic:
        return Nic(info.tap_fd, info.mac, info.mtu)

    def _add_neighbours(self, agent: AgentClient, plan: NetworkPlan) -> None:
        request = agent_pb2.AddARPNeighborsRequest(neighbors=guest_network.neighbours(plan))
        try:
            agent.do("AddARPNeighbors", request)
        except errors.Unsupported:
            pass  # Kata's shim does not need it either


class RunningMachine:
    """See the module. `close` undoes the whole recipe."""

    def __init__(
        self,
        vm: Vm,
        agent: AgentClient,
        files: Files,
        vsock: Transport,
        network: Network,
        plan: SandboxPlan,
        stdio: str,
        fate: Fate,
    ) -> None:
        self.agent = agent
        self.agent_is_ours = False
        self.files = files
        self.vcpus = plan.vcpus
        self.vm = vm
        self._vsock = vsock
        self._network = network
        self._stdio = stdio
        self._fate = fate
        self._undo = ExitStack()
        self._ports = itertools.count(1)
        self._awaited: tuple[Callable[[], None], ...] = ()

    def adopt(self, undo: ExitStack) -> None:
        """How everything is taken back at the end."""
        self._undo = undo

    def under_way(self, wait: Callable[[], None]) -> None:
        """Something is being done that the sandbox needs before a program runs in it; `wait` waits for that."""
        self._awaited = (*self._awaited, wait)

    def await_sandbox(self) -> None:
        """Until the sandbox is there and complete, which the first to ask waits for. Raises HakoError."""
        awaited, self._awaited = self._awaited, ()
        for wait in awaited:
            wait()

    def learn_features(self, *, known: bool) -> None:
        """Whether the agent is ours, and streams have connections of their own. `known`: it is, as in every template."""
        self.agent_is_ours = known or STREAM_FEATURE in self.agent.details().extra_features
        if self._stdio == "auto":
            self._stdio = "stream" if self.agent_is_ours else "rpc"

    @property
    def streams_by_rpc(self) -> bool:
        """Whether the agent knows no stream connections."""
        return self._stdio == "rpc"

    def open_stream(self) -> tuple[socket, int]:
        """A stream to the agent, which knows it by the returned number: the first line on it."""
        sock = self._vsock.connect(STDIO_PORT, STREAM_TIMEOUT)
        port = next(self._ports)
        sock.sendall(b"PORT %d\n" % port)
        return sock, port

    def on_end(self, callback: Callable[[str], None]) -> None:
        """Call `callback(reason)` once, in a thread of its own, when the machine has ended by itself."""
        self._fate.tell(callback)

    def agent_left(self) -> None:
        """The agent has hung up, which it does not do while it lives; the VM's own end tells more, so that comes first."""
        if not self._fate.wait(LAST_WORDS):
            self._fate.end(f"the agent has closed its connection{last_words(self.vm.console_tail())}")

    def rescan_network(self) -> None:
        """Carry links that came since the boot into the machine."""
        self._network.rescan(self.vm, self.agent)

    def expire(self) -> None:
        """Nothing is wanted of the guest any more: its end begins, and `close` is told later. Repeatable."""
        self._fate.dismiss()
        threading.Thread(target=self._kill, name="hako-kill", daemon=True).start()

    def close(self) -> None:
        """End everything. Repeatable.

        The VM has nothing to lose: what a guest wrote to the share is on the host. Its memory goes (10 ms) while the rest
        is taken back, at whose end the VM's own turn is waited for.
        """
        self.expire()
        self._undo.close()

    def _kill(self) -> None:
        try:
            self.vm.stop(0)
        except errors.HakoError:
            pass  # told by the second stop, which is the recipe's
