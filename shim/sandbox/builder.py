"""The recipe of a pod's VM, in the machine's order.

The only module that knows share, network, vsock and hypervisor together:

    cgroup, share, virtiofsd, vsock daemon, taps, VM, hello, agent, interfaces and routes, sandbox in the
    guest

The VM comes out of a template where there is one for it: then QEMU starts first, the template's memory is copied
meanwhile, and share (unless it was saved mounted), vsock and taps are plugged once both are there. Else it boots, and
the template is made beside it for the next pod. A template that fails is rejected, and the pod boots after all.

Owns: that order, what each step hands to the next (a descriptor, a path, a number), undoing it in reverse.
Must not know: containers, the engine. Called by sandbox.py; what it returns is a machine.RunningMachine.

Everything that must not outlive the pod is written into the state file before or as soon as it exists.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from agent.api import agent_pb2
from agent.ttrpc.client import Client
from shim.agent_client import AGENT_PORT, AgentClient
from shim.cgroups import Cgroup
from shim.errors import BootError, HakoError, Unavailable
from shim.hypervisor.base import Vsock
from shim.hypervisor.qemu.driver import Qemu
from shim.hypervisor.vsock import Transport
from shim.network import netns as host_network
from shim.sandbox import clone, guestfiles, hostfacts, hostplan, template, templatebuild, vmspec
from shim.sandbox import plan as planning
from shim.sandbox.disks import DiskFiles
from shim.sandbox.fate import Fate
from shim.sandbox.launch import VMM, Launched, Launching
from shim.sandbox.machine import Network, RunningMachine
from shim.sandbox.placement import Files, SharedFiles
from shim.trace import Marks

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.config import Config
    from shim.hypervisor.base import Nic, Share, Vm, VmSpec
    from shim.oci.spec import Spec
    from shim.sandbox.ahead import Ahead
    from shim.sandbox.hostside import Request
    from shim.sandbox.spare import Spare
    from shim.sandbox.store import Store

SANDBOX_SHM = "/run/kata-containers/sandbox/shm"
AGENT_LEFT = 1.0  # seconds for the machine's end to be noticed after that of the connection to its agent


class HostFactory:
    """Makes real machines; implements sandbox.Factory."""

    def __init__(self, log: Callable[[str, str], None], spare: Spare | None = None, begun: Ahead | None = None) -> None:
        self._log = log
        self._spare = spare
        self._begun = begun
        self._taken: Ahead | None = None

    def plan(self, config: Config, request: Request, sandbox_id: str, namespace: str) -> planning.SandboxPlan:
        """See hostplan.py."""
        return hostplan.of_pod(config, request.spec, request.bundle, sandbox_id, namespace, request.rootfs)

    def take_ahead(self, request: Request) -> Ahead | None:
        """See sandbox.Factory."""
        begun, self._begun = self._begun, None
        if begun is not None and not begun.is_for(request):
            begun.close()
            begun = None
        self._taken = begun
        return begun

    def cgroup_of(self, container_id: str, spec: Spec) -> Cgroup:
        """The cgroup of a container on the host."""
        path = (spec.linux.cgroups_path if spec.linux else None) or ""
        return Cgroup.for_container(path, container_id)

    def build(self, config: Config, plan: planning.SandboxPlan, netns: str, store: Store, fate: Fate) -> RunningMachine:
        """Make the machine, which ends with `fate`, also before it is up.

        Raises HakoError (BootError with the guest's last words); nothing is left then.
        """
        spare, self._spare = self._spare, None
        if spare is not None and (machine := self._from_spare(spare, config, plan, netns, store, fate)) is not None:
            return machine
        ahead, self._taken = self._taken, None
        try:
            return self._build(config, plan, netns, store, Fate(fate), from_template=True, ahead=ahead)
        except clone.TemplateFailed as exc:
            if fate.reason:
                raise Unavailable(fate.reason, step="boot") from exc
            self._log("warn", f"template {exc.key} does not start, this pod boots: {exc}")
            machine = self._build(config, plan, netns, store, Fate(fate), from_template=False)
            if not exc.killed:
                template.reject(exc.key, str(exc))
            return machine

    def _from_spare(
        self, spare: Spare, config: Config, plan: planning.SandboxPlan, netns: str, store: Store, fate: Fate
    ) -> RunningMachine | None:
        """The machine with a VM of the pool; None if it does not fit or has just ended."""
        fate.also(lambda: spare.fate.end(fate.reason))
        with ExitStack() as undo:
            try:
                machine = Building(config, plan, netns, store, undo, self._log, spare.fate, from_template=True).adopt(spare)
            except HakoError as exc:
                if fate.reason:
                    raise
                self._log("warn", f"a VM of the pool was thrown away: {exc}")
                threading.Thread(target=spare.close, name="hako-spare-end", daemon=True).start()
                return None
            machine.adopt(undo.pop_all())
            return machine

    def close(self) -> None:
        """Nothing more will be built."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.close()

    def _build(
        self,
        config: Config,
        plan: planning.SandboxPlan,
        netns: str,
        store: Store,
        fate: Fate,
        *,
        from_template: bool,
        ahead: Ahead | None = None,
    ) -> RunningMachine:
        with ExitStack() as undo:
            if ahead is not None:
                undo.enter_context(ahead.undo.pop_all())
                outer, fate = fate, ahead.fate
                outer.also(lambda: ahead.fate.end(outer.reason))
            building = Building(config, plan, netns, store, undo, self._log, fate, from_template=from_template)
            try:
                machine = building.build(ahead.launched if ahead is not None else None)
            except clone.TemplateFailed as exc:
                exc.killed = building.was_killed()
                raise
            except Unavailable as exc:
                raise building.explained(exc) from exc
            machine.adopt(undo.pop_all())
            return machine


class Building(Launching):
    """One run of the recipe, whose first half may have been `launched` already."""

    def explained(self, exc: Unavailable) -> Unavailable:
        """`exc`, or the end of a daemon that it follows from: it ended before the VMM did."""
        self._fate.wait(0.2)
        ended = self._fate.reason
        if not ended or ended.startswith(VMM):
            return exc
        return BootError(exc.step or "boot", ended, console_tail=getattr(exc, "console_tail", ""))

    def was_killed(self) -> bool:
        """Whether somebody outside has ended it, so that nothing is said about what it was made from."""
        self._fate.wait(0.2)
        return self._fate.killed

    def build(self, launched: Launched | None = None) -> RunningMachine:
        """The steps in order.

        What takes long by itself (links, daemons, boot) is begun before it is waited for.
        """
        config, marks = self._config, Marks()
        launched = launched or self.launch(marks)
        self._plan = launched.plan
        coming, vsock = launched.coming, launched.vsock
        with launched.ours:
            network = self._end_network(launched.attaching)
            marks.mark("network")
            devices = (launched.share, vsock.device(), network.nics())
            if coming is not None:
                vm = coming.enter(*devices)
                marks.mark("restore")
            else:
                vm = self._boot(self._spec(launched, *devices))
                marks.mark("launch")
        if coming is not None:
            coming.await_hello(vm)
        else:
            vm.wait_ready(config.guest.boot_timeout)
        marks.mark("boot")
        agent = self._connect(vsock)
        tree = launched.tree
        way: Files = SharedFiles(tree) if tree is not None else DiskFiles(vm, agent, config.share, self._log)
        machine = RunningMachine(vm, agent, way, vsock, network, self._plan, config.agent.stdio, self._fate)
        marks.mark("connect")
        how = "booted" if coming is None else f"from template {coming.key}"
        self._make_sandbox(machine, network, coming, marks, how)
        if launched.template_wanted:
            templatebuild.begin(config, self._log)
        return machine

    def adopt(self, spare: Spare) -> RunningMachine:
        """The steps for a VM that is there already. Raises HakoError; one that does not fit is untouched then."""
        marks = Marks()
        self._must_fit(spare)
        marks.mark("fit")
        cgroup = self._make_cgroup()
        self._undo.callback(spare.close)
        self._store.change(spare.note_in)
        moved = spare.enter(cgroup)
        network = self._end_network(self._begin_network())
        for nic in network.nics():
            spare.vm.plug(nic)
        marks.mark("network")
        machine = RunningMachine(spare.vm, spare.agent, spare.files, spare.vsock, network, self._plan, spare.stdio, self._fate)
        machine.under_way(moved)  # a move waits for the kernel's RCU (Linux, cgroup_attach_lock): 10 ms and more
        self._make_sandbox(machine, network, spare.clone, marks, "from the pool")
        return machine

    def _make_sandbox(
        self, machine: RunningMachine, network: Network, coming: clone.Clone | None, marks: Marks, how: str
    ) -> None:
        """The guest becomes this pod's: its own identity and size if it is a clone, the sandbox, the links.

        Where nothing has to follow, a clone's sandbox is not waited for: the agent makes it while the host prepares the
        container, which is asked for next.
        """

        def made() -> None:
            marks.mark("sandbox")
            if not follows:
                up()

        def up() -> None:
            self._log("info", f"sandbox {self._plan.sandbox_id} is up, {how}, after {marks.line()}")

        follows = coming is None or not network.empty
        request = self._sandbox_request(machine.files.sandbox_storage())
        if coming is not None:
            clone.make_its_own(request)
            coming.grow(machine.agent, machine.vm, self._plan)
        machine.under_way(machine.agent.begin("CreateSandbox", request, on_answer=made))
        if follows:
            machine.await_sandbox()
            network.configure(machine.agent)
        machine.learn_features(known=coming is not None)
        if follows:
            marks.mark("configure")
            up()

    def _must_fit(self, spare: Spare) -> None:
        files = guestfiles.find(self._config.guest)
        accelerator = self._accelerator(files, self._confinement(None))
        saved = clone.find(self._config, files, accelerator, self._plan.vcpus).saved
        reason = spare.unfit(self._config, saved.template.key if saved is not None else "")
        if reason:
            raise HakoError(reason, step="use a VM of the pool")

    def _spec(self, launched: Launched, share: Share | None, vsock: Vsock, nics: tuple[Nic, ...]) -> VmSpec:
        plan = self._plan
        size = (plan.vcpus, plan.memory_mib, plan.max_vcpus, plan.max_memory_mib)
        return vmspec.of_size(self._config, launched.files, launched.accelerator, *size)._replace(
            name=f"hako-{plan.sandbox_id}",
            uuid=hostfacts.random_uuid(),
            share=share,
            vsock=vsock,
            nics=nics,
            confine=launched.confine,
        )

    def _end_network(self, attaching: host_network.Attaching | None) -> Network:
        given = bool(self._plan.netns)
        network = Network(self._netns, self._plan.sandbox_id, self._config.network, self._log, given=given)
        self._on_undo("network", network.close)
        if attaching is not None:
            network.take(attaching.result())
            taps = network.taps
            self._store.change(lambda state: state.update(network={"netns": self._netns, "taps": taps}))
        return network

    def _boot(self, spec: VmSpec) -> Vm:
        vm = Qemu(self._config.hypervisor).launch(spec)
        self._own_vmm(vm)
        return vm

    def _connect(self, vsock: Transport) -> AgentClient:
        sock = vsock.connect(AGENT_PORT, self._config.guest.dial_timeout)
        agent = AgentClient(Client(sock), self._config.agent.request_timeout, lambda: self._fate.why(AGENT_LEFT))
        self._undo.callback(agent.close)
        self._fate.also(agent.close)
        return agent

    def _sandbox_request(self, files: agent_pb2.Storage) -> agent_pb2.CreateSandboxRequest:
        plan = self._plan
        storages = [files, shared_memory(plan.shm_size)]
        return agent_pb2.CreateSandboxRequest(
            hostname=plan.hostname, dns=plan.dns, storages=storages, sandbox_id=plan.sandbox_id
        )


def shared_memory(size: int) -> agent_pb2.Storage:
    """The pod's /dev/shm, of so many bytes; a template's agent has that of the default size (agent.sandbox_storages.SHM)."""
    options = ["noexec", "nosuid", "nodev", "mode=1777", f"size={size}"]
    return agent_pb2.Storage(driver="ephemeral", source="shm", fstype="tmpfs", options=options, mount_point=SANDBOX_SHM)
