"""The processes of a pod's VM, begun: VMM, virtiofsd, vsock daemon, each in the pod's cgroup.

Owns: their order, where each is entered in the state file, taking them back in reverse. Must not know: what is spoken with
the guest, containers. The first half of builder.py's recipe, apart from it so that it can be begun before the other half's
imports are there (ahead.py): nothing here may import protobuf or ttrpc, and what is not needed for the VMM is imported when that
is starting already. spare.py uses the steps, too.

Everything that must not outlive the pod is written into the state file before or as soon as it exists.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from shim import paths
from shim.cgroups import Cgroup
from shim.errors import HakoError
from shim.hypervisor import host
from shim.process import Confinement
from shim.sandbox import clone, guestfiles, hostfacts, vmspec
from shim.sandbox.fate import Fate, last_words
from shim.share import virtiofsd
from shim.trace import Marks

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.config import Config
    from shim.hypervisor.base import Share, Vm, Waiting
    from shim.hypervisor.vsock import Transport
    from shim.network import netns as host_network
    from shim.process import Child
    from shim.sandbox.plan import SandboxPlan
    from shim.sandbox.store import Store
    from shim.share.tree import ShareTree

VMM = "the VM"


class Launched(NamedTuple):
    """What was begun. `plan` has the vCPUs that suit the accelerator.

    `coming` is the VM out of a template; None: it is to boot, with `files` and `accelerator` in `confine`. `ours`: our copies
    of what is handed to the VMM, to be closed once it has them.
    """

    plan: SandboxPlan
    files: guestfiles.GuestFiles
    accelerator: str
    confine: Confinement
    coming: clone.Clone | None
    share: Share | None
    tree: ShareTree | None
    vsock: Transport
    attaching: host_network.Attaching | None
    ours: ExitStack
    template_wanted: bool


class Launching:
    """`undo` collects how each step is taken back; whatever ends, ends `fate`."""

    def __init__(
        self,
        config: Config,
        plan: SandboxPlan,
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

    def launch(self, marks: Marks) -> Launched:
        """Begin with everything. Raises HakoError; what was begun is in `undo` then."""
        files = guestfiles.find(self._config.guest)
        cgroup = self._make_cgroup()
        confine = self._confinement(cgroup)
        marks.mark("cgroup")
        accelerator = self._accelerator(files, confine)
        marks.mark("accelerator")
        saved = self._find_template(files, accelerator)
        with ExitStack() as ours:
            link, share = self._link_share(ours)
            coming = self._begin_clone(saved, confine, share, ours) if saved is not None else None
            marks.mark("template")
            attaching = self._begin_network()
            tree = self._make_share(cgroup, link)
            marks.mark("virtiofsd")
            vsock = self._start_vsock(confine)
            ours.callback(vsock.launched)
            marks.mark("vsock")
            kept = self._undo.enter_context(ours.pop_all())
        wanted = self._template_wanted
        return Launched(self._plan, files, accelerator, confine, coming, share, tree, vsock, attaching, kept, wanted)

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
        self._undo.callback(coming.free)
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

    def _make_cgroup(self) -> Cgroup:
        cgroup = Cgroup.for_sandbox(self._plan.cgroups_path, self._plan.sandbox_id)
        parents = cgroup.missing_parents()

        def note(state: dict[str, Any]) -> None:
            state["cgroups"].extend(cgroup.dirs)
            state["cgroup_parents"].extend(parents)

        self._store.change(note)
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
        from shim.share.tree import ShareTree

        if link is None:
            return None
        tree = ShareTree(os.path.join(self._store.directory, "share"))
        self._on_undo("share", tree.close)
        confine = Confinement(cgroup_dirs=_dirs(cgroup), no_new_privs=False)
        daemon = link.serve(tree.directory, self._config.share, confine, own_files=self._plan.own_files)
        self._owned("virtiofsd", daemon)
        return tree

    def _start_vsock(self, confine: Confinement) -> Transport:
        from shim.hypervisor.vsock import open_transport

        plan = self._plan
        directory = paths.daemon_socket_dir(plan.sandbox_id, plan.namespace)
        self._store.change(lambda state: state["paths"].append(directory))
        vsock = open_transport(self._config.vsock, directory, confine)
        self._on_undo("vsock", vsock.close)
        self._fate.watch_daemon("vhost-device-vsock", vsock.on_exit, vsock.status, vsock.kill)
        return vsock

    def _begin_network(self) -> host_network.Attaching | None:
        """Begin to carry the links of the pod's namespace; an empty one needs no child for that."""
        from shim.network import netns as host_network

        if not host_network.has_links(self._netns):
            return None
        return host_network.begin_attach(self._netns, self._plan.sandbox_id)

    def _own_vmm(self, vm: Vm | Waiting) -> None:
        self._on_undo("VMM", vm.stop)
        self._fate.watch_vmm(vm.on_exit, vm.status, lambda: f"{VMM} has ended{last_words(vm.console_tail())}")
        self._fate.also(lambda: vm.stop(0))
        self._store.add_process("vmm", vm.pid)

    def _confinement(self, cgroup: Cgroup | None) -> Confinement:
        """Of the VMM and the vsock daemon: unprivileged, in the pod's cgroup and network namespace."""
        uid, gid = hostfacts.user_ids(self._config.runtime.user)
        return Confinement(cgroup_dirs=_dirs(cgroup), netns=self._netns, uid=uid, gid=gid, groups=host.kvm_groups())

    def _owned(self, name: str, child: Child) -> None:
        self._store.add_process(name, child.pid)
        self._on_undo(name, lambda: _end(child))
        self._fate.watch_daemon(name, child.on_exit, child.poll, child.kill)

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
