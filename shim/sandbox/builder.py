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

import os
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from agent.api import agent_pb2
from agent.ttrpc.client import Client
from shim import paths
from shim.agent_client import AGENT_PORT, AgentClient
from shim.cgroups import Cgroup
from shim.errors import BootError, HakoError, Unavailable
from shim.hypervisor import host
from shim.hypervisor.base import Vsock
from shim.hypervisor.qemu.driver import Qemu
from shim.hypervisor.vsock import Transport, open_transport
from shim.network import netns as host_network
from shim.oci import mounts
from shim.process import Confinement
from shim.sandbox import clone, guestfiles, hostfacts, template, templatebuild, vmspec
from shim.sandbox import plan as planning
from shim.sandbox.disks import DiskFiles
from shim.sandbox.fate import Fate
from shim.sandbox.machine import Network, RunningMachine, last_words
from shim.sandbox.placement import Files, SharedFiles
from shim.share import virtiofsd
from shim.share.tree import ShareTree
from shim.trace import Marks

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.config import Config
    from shim.hypervisor.base import Nic, Share, Vm, VmSpec, Waiting
    from shim.oci.spec import Spec
    from shim.process import Child
    from shim.sandbox.spare import Spare
    from shim.sandbox.store import Store

SANDBOX_SHM = "/run/kata-containers/sandbox/shm"
VMM = "the VM"
AGENT_LEFT = 1.0  # seconds for the machine's end to be noticed after that of the connection to its agent


class HostFactory:
    """Makes real machines; implements sandbox.Factory."""

    def __init__(self, log: Callable[[str, str], None], spare: Spare | None = None) -> None:
        self._log = log
        self._spare = spare

    def plan(self, config: Config, spec: Spec, bundle: str, sandbox_id: str, namespace: str) -> planning.SandboxPlan:
        """The plan, with what only the host knows: its size, the pod's shm and resolv.conf."""
        plans = mounts.plan(spec, bundle)
        sources = {(spec.mounts or ())[plan.at].destination: plan for plan in plans if plan.source}
        shm = next((plan.source for plan in plans if plan.fate == mounts.SHM), "")
        resolv_conf = sources.get("/etc/resolv.conf")
        return planning.plan(
            spec,
            sandbox_id,
            namespace,
            config.hypervisor,
            hostfacts.limits(),
            shm_size=_filesystem_size(shm),
            resolv_conf=_text_of(resolv_conf.source) if resolv_conf else "",
        )

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
        try:
            return self._build(config, plan, netns, store, Fate(fate), from_template=True)
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

    def _build(
        self, config: Config, plan: planning.SandboxPlan, netns: str, store: Store, fate: Fate, *, from_template: bool
    ) -> RunningMachine:
        with ExitStack() as undo:
            building = Building(config, plan, netns, store, undo, self._log, fate, from_template=from_template)
            try:
                machine = building.build()
            except clone.TemplateFailed as exc:
                exc.killed = building.was_killed()
                raise
            except Unavailable as exc:
                raise building.explained(exc) from exc
            machine.adopt(undo.pop_all())
            return machine


class Building:
    """One run of the recipe; `undo` collects how each step is taken back."""

    def __init__(
        self,
        config: Config,
        plan: planning.SandboxPlan,
        netns: str,
        store: Store,
        undo: ExitStack,
        log: Callable[[str, str], None],
        fate: Fate,
        *,
        from_template: bool,
    ) -> None:
        self._from_template = from_template
        self._template_wanted = False
        self._config = config
        self._plan = plan
        self._netns = netns
        self._store = store
        self._undo = undo
        self._log = log
        self._fate = fate

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

    def build(self) -> RunningMachine:
        """The steps in order.

        What takes long by itself (links, daemons, boot) is begun before it is waited for.
        """
        config, marks = self._config, Marks()
        files = guestfiles.find(config.guest)
        cgroup = self._make_cgroup()
        confine = self._confinement(cgroup)
        marks.mark("cgroup")
        accelerator = self._accelerator(files, confine)
        marks.mark("accelerator")
        saved = self._find_template(files, accelerator)
        with ExitStack() as ours:  # our copies of what is handed to the VMM
            link, share = self._link_share(ours)
            coming = self._begin_clone(saved, confine, share, ours) if saved is not None else None
            marks.mark("template")
            attaching = self._begin_network()
            tree = self._make_share(cgroup, link)
            marks.mark("virtiofsd")
            vsock = self._start_vsock(confine)
            ours.callback(vsock.launched)
            marks.mark("vsock")
            network = self._end_network(attaching)
            marks.mark("network")
            devices = (share, vsock.device(), network.nics())
            if coming is not None:
                vm = coming.enter(*devices)
                marks.mark("restore")
            else:
                vm = self._launch(self._spec(files, accelerator, confine, *devices))
                marks.mark("launch")
        if coming is not None:
            coming.await_hello(vm)
        else:
            vm.wait_ready(config.guest.boot_timeout)
        marks.mark("boot")
        agent = self._connect(vsock)
        way: Files = SharedFiles(tree) if tree is not None else DiskFiles(vm, agent, config.share, self._log)
        machine = RunningMachine(vm, agent, way, vsock, network, self._plan, config.agent.stdio, self._fate)
        marks.mark("connect")
        self._make_sandbox(machine, network, coming, marks)
        how = "booted" if saved is None else f"from template {saved.template.key}"
        self._log("info", f"sandbox {self._plan.sandbox_id} is up, {how}, after {marks.line()}")
        if self._template_wanted:
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
        self._make_sandbox(machine, network, spare.clone, marks)
        moved()
        marks.mark("cgroup")
        self._log("info", f"sandbox {self._plan.sandbox_id} is up, from the pool, after {marks.line()}")
        return machine

    def _make_sandbox(self, machine: RunningMachine, network: Network, coming: clone.Clone | None, marks: Marks) -> None:
        """The guest becomes this pod's: its own identity and size if it is a clone, the sandbox, the links."""
        request = self._sandbox_request(machine.files.sandbox_storage())
        if coming is not None:
            clone.make_its_own(request)
            coming.grow(machine.agent, machine.vm, self._plan)
        machine.agent.do("CreateSandbox", request)
        marks.mark("sandbox")
        network.configure(machine.agent)
        machine.learn_features(known=coming is not None)
        marks.mark("configure")

    def _must_fit(self, spare: Spare) -> None:
        files = guestfiles.find(self._config.guest)
        accelerator = self._accelerator(files, self._confinement(None))
        saved = clone.find(self._config, files, accelerator, self._plan.vcpus).saved
        reason = spare.unfit(self._config, saved.template.key if saved is not None else "")
        if reason:
            raise HakoError(reason, step="use a VM of the pool")

    def _find_template(self, files: guestfiles.GuestFiles, accelerator: str) -> clone.Saved | None:
        """The template for this pod; without one it is said why, and it is made once the pod is up."""
        if not self._from_template:
            return None
        looked = clone.find(self._config, files, accelerator, self._plan.vcpus)
        if looked.saved is None and looked.reason:
            self._log("info", f"this pod boots: {looked.reason}")
        self._template_wanted = looked.make
        return looked.saved

    def _begin_clone(self, saved: clone.Saved, confine: Confinement, share: Share | None, ours: ExitStack) -> clone.Clone:
        spec = saved.spec._replace(name=f"hako-{self._plan.sandbox_id}", uuid=hostfacts.random_uuid(), confine=confine)
        spec = spec._replace(share=share if spec.mounted else None)
        coming = clone.Clone(self._config, saved.template, spec)
        ours.callback(coming.close)
        self._own_vmm(coming.vm)
        return coming

    def _accelerator(self, files: guestfiles.GuestFiles, confine: Confinement) -> str:
        """Which it is; how many vCPUs the VM has may depend on it."""
        probed = host.GuestFiles(files.kernel, files.image or None, files.initrd or None)
        found = host.probe_accelerator(self._config.hypervisor, probed, confine)
        if not found.cached:
            self._log("info", f"accelerator {found.name}: {found.reason}")
        vcpus = vmspec.vcpus(self._config, found.name, self._plan.vcpus, hostfacts.limits())
        self._plan = self._plan._replace(vcpus=vcpus)
        return found.name

    def _spec(
        self,
        files: guestfiles.GuestFiles,
        accelerator: str,
        confine: Confinement,
        share: Share | None,
        vsock: Vsock,
        nics: tuple[Nic, ...],
    ) -> VmSpec:
        plan = self._plan
        size = (plan.vcpus, plan.memory_mib, plan.max_vcpus, plan.max_memory_mib)
        return vmspec.of_size(self._config, files, accelerator, *size)._replace(
            name=f"hako-{plan.sandbox_id}",
            uuid=hostfacts.random_uuid(),
            share=share,
            vsock=vsock,
            nics=nics,
            confine=confine,
        )

    def _make_cgroup(self) -> Cgroup:
        cgroup = Cgroup.for_sandbox(self._plan.cgroups_path, self._plan.sandbox_id)
        self._store.change(lambda state: state["cgroups"].extend(cgroup.dirs))
        self._on_undo("cgroup", cgroup.remove)
        cgroup.create()
        return cgroup

    def _link_share(self, ours: ExitStack) -> tuple[virtiofsd.Link | None, Share | None]:
        """The VM's device for the share, and where virtiofsd is to serve it; None where nothing is shared.

        A VMM whose saved VM has the share wants its end at its start, when there is no daemon yet.
        """
        if self._config.share.shared_fs == "none":
            return None, None
        link = virtiofsd.Link(self._store.directory)
        ours.callback(link.close)
        return link, vmspec.share(self._config, link.vm_fd)

    def _make_share(self, cgroup: Cgroup | None, link: virtiofsd.Link | None) -> ShareTree | None:
        """The tree that virtiofsd shows, and the daemon."""
        if link is None:
            return None
        tree = ShareTree(os.path.join(self._store.directory, "share"))
        self._on_undo("share", tree.close)
        confine = Confinement(cgroup_dirs=_dirs(cgroup), no_new_privs=False)
        self._owned("virtiofsd", link.serve(tree.directory, self._config.share, confine))
        return tree

    def _start_vsock(self, confine: Confinement) -> Transport:
        plan = self._plan
        directory = paths.daemon_socket_dir(plan.sandbox_id, plan.namespace)
        self._store.change(lambda state: state["paths"].append(directory))
        vsock = open_transport(self._config.vsock, directory, confine)
        self._on_undo("vsock", vsock.close)
        self._fate.watch_daemon("vhost-device-vsock", vsock.on_exit, vsock.status)
        return vsock

    def _begin_network(self) -> host_network.Attaching | None:
        """Begin to carry the links of the pod's namespace; an empty one needs no child for that."""
        if not host_network.has_links(self._netns):
            return None
        return host_network.begin_attach(self._netns, self._plan.sandbox_id)

    def _end_network(self, attaching: host_network.Attaching | None) -> Network:
        given = bool(self._plan.netns)
        network = Network(self._netns, self._plan.sandbox_id, self._config.network, self._log, given=given)
        self._on_undo("network", network.close)
        if attaching is not None:
            network.take(attaching.result())
            taps = network.taps
            self._store.change(lambda state: state.update(network={"netns": self._netns, "taps": taps}))
        return network

    def _launch(self, spec: VmSpec) -> Vm:
        vm = Qemu(self._config.hypervisor).launch(spec)
        self._own_vmm(vm)
        return vm

    def _own_vmm(self, vm: Vm | Waiting) -> None:
        self._on_undo("VMM", vm.stop)
        self._fate.watch_vmm(vm.on_exit, vm.status, lambda: f"{VMM} has ended{last_words(vm.console_tail())}")
        self._fate.also(lambda: vm.stop(0))
        self._store.add_process("vmm", vm.pid)

    def _connect(self, vsock: Transport) -> AgentClient:
        sock = vsock.connect(AGENT_PORT, self._config.guest.dial_timeout)
        agent = AgentClient(Client(sock), self._config.agent.request_timeout, lambda: self._fate.why(AGENT_LEFT))
        self._undo.callback(agent.close)
        self._fate.also(agent.close)
        return agent

    def _sandbox_request(self, files: agent_pb2.Storage) -> agent_pb2.CreateSandboxRequest:
        plan = self._plan
        options = ["noexec", "nosuid", "nodev", "mode=1777", f"size={plan.shm_size}"]
        shm = agent_pb2.Storage(driver="ephemeral", source="shm", fstype="tmpfs", options=options, mount_point=SANDBOX_SHM)
        return agent_pb2.CreateSandboxRequest(
            hostname=plan.hostname, dns=plan.dns, storages=[files, shm], sandbox_id=plan.sandbox_id
        )

    def _confinement(self, cgroup: Cgroup | None) -> Confinement:
        """Of the VMM and the vsock daemon: unprivileged, in the pod's cgroup and network namespace."""
        uid, gid = hostfacts.user_ids(self._config.runtime.user)
        return Confinement(cgroup_dirs=_dirs(cgroup), netns=self._netns, uid=uid, gid=gid, groups=host.kvm_groups())

    def _owned(self, name: str, child: Child) -> None:
        self._store.add_process(name, child.pid)
        self._on_undo(name, lambda: _end(child))
        self._fate.watch_daemon(name, child.on_exit, child.poll)

    def _on_undo(self, name: str, step: Callable[[], object]) -> None:
        """Take a step back at the end; what cannot be taken back is told and does not keep the others."""

        def undo() -> None:
            try:
                step()
            except HakoError as exc:
                self._log("warn", f"{name} of {self._plan.sandbox_id}: {exc}")

        self._undo.callback(undo)


def _dirs(cgroup: Cgroup | None) -> tuple[str, ...]:
    return tuple(cgroup.dirs) if cgroup is not None else ()


def _end(child: Child) -> None:
    child.terminate(0)
    child.close()


def _filesystem_size(path: str) -> int:
    """Bytes of the tmpfs at a host path; 0 if it is none."""
    try:
        found = os.statvfs(path) if path else None
    except OSError:
        return 0
    return found.f_frsize * found.f_blocks if found and os.path.ismount(path) else 0


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(65536)
    except OSError:
        return ""
