"""What a container has on the host: root filesystem, cgroup, stub, hooks.

Owns: making them in this order, writing each into the state before it is made, taking them away in reverse.
Must not know: the guest. Called by container.py, under its lock.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from shim.errors import HakoError
from shim.oci import spec as oci
from shim.oci.state import state_json
from shim.sandbox import hooks, rootfs, stub
from shim.stdio.fifo import Names

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.cgroups import Cgroup
    from shim.sandbox.store import Store


class Request(NamedTuple):
    """What an engine asks for: ids and host paths, the mounts of the root filesystem, the streams' names."""

    id: str
    bundle: str
    spec: oci.Spec
    names: Names
    rootfs: tuple[rootfs.RootfsMount, ...] = ()


class HostSide:
    """See the module. `pid` is the stub's, 0 before `start_stub`."""

    def __init__(
        self, request: Request, store: Store, warn: Callable[[str], None], *, run_hooks: bool, mount_rootfs: bool
    ) -> None:
        """`mount_rootfs`: False if the root filesystem is a disk that goes into the VM as it is."""
        self.pid = 0
        self._warn = warn
        self._request = request
        self._store = store
        self._hooks = request.spec.hooks if run_hooks else None
        self._mounts = request.rootfs if mount_rootfs else ()
        self._undo = ExitStack()
        self._stub: stub.Stub | None = None
        self._spawn_stub: Callable[[], None] = _nothing
        self._cgroup: Cgroup | None = None

    def prepare(self, cgroup: Cgroup, netns: str, stub_killed: Callable[[], None]) -> None:
        """Make everything but the stub, which only hooks need already. Raises HakoError; nothing is left then.

        `netns`: host path of the network namespace. `stub_killed` is called, in the watching thread, when the
        stub ends by itself.
        """
        self._spawn_stub = lambda: self._start_stub(tuple(cgroup.dirs), netns, stub_killed)
        with ExitStack() as undo:
            self._note(cgroup)
            undo.callback(self._forget)
            self._mount_rootfs(undo)
            self._make_cgroup(undo, cgroup)
            undo.callback(self.end_stub)
            self._run_create_hooks()
            self._undo = undo.pop_all()

    def start_stub(self) -> None:
        """Start the stub unless it was. Raises HakoError.

        While the kernel moves it into its cgroup (10 ms for RCU) nobody can make a cgroup or a process, so that this comes
        when only the guest has work to do.
        """
        if not self.pid:
            self._spawn_stub()

    def await_stub(self) -> None:
        """Wait until the stub is in its cgroup and namespaces, where engines look for it. Raises HakoError."""
        if self._stub is not None:
            stub.await_program(self._stub.child)

    @property
    def rootfs_path(self) -> str:
        """Host path of the container's root."""
        root = self._request.spec.root
        assert root is not None
        return os.path.join(self._request.bundle, "rootfs" if self._request.rootfs else root.path)

    def apply(self, resources: oci.Resources) -> None:
        """New limits for the container's cgroup on the host."""
        if self._cgroup is not None:
            self._cgroup.apply(oci.to_json_types(resources))

    def end_stub(self) -> None:
        """End and reap the stub. Repeatable."""
        ended, self._stub = self._stub, None
        if ended is not None:
            ended.end()

    def started(self) -> None:
        """Run the poststart hooks."""
        hooks.run_all_tolerantly("poststart", self._hooks_of("poststart"), self._state("running"), self._warn)

    def release(self) -> None:
        """Take everything away. Repeatable."""
        self._undo.close()

    def stopped(self) -> None:
        """Run the poststop hooks, after `release`."""
        hooks.run_all_tolerantly("poststop", self._hooks_of("poststop"), self._state("stopped"), self._warn)

    def _mount_rootfs(self, undo: ExitStack) -> None:
        if not self._mounts:
            return
        rootfs.mount_all(self._mounts, self.rootfs_path)
        undo.callback(rootfs.unmount, self.rootfs_path)

    def _make_cgroup(self, undo: ExitStack, cgroup: Cgroup) -> None:
        undo.callback(self._remove_cgroup, cgroup)
        cgroup.create()
        self._cgroup = cgroup
        linux = self._request.spec.linux
        if linux is not None and linux.resources is not None:
            self.apply(linux.resources)

    def _remove_cgroup(self, cgroup: Cgroup) -> None:
        """One that somebody else still uses (an engine's helper) must not keep the container from going."""
        try:
            cgroup.remove()
        except HakoError as exc:
            self._warn(str(exc))

    def _start_stub(self, cgroup_dirs: tuple[str, ...], netns: str, killed: Callable[[], None]) -> None:
        self._stub = made = stub.spawn(cgroup_dirs, netns)
        child = made.child
        self.pid = child.pid
        self._store.add_process(f"stub of {self._request.id}", child.pid)
        child.on_exit(lambda: killed() if self._stub is made else None)

    def _run_create_hooks(self) -> None:
        planned = {kind: self._hooks_of(kind) for kind in ("prestart", "create_runtime", "create_container")}
        if any(planned.values()):
            self.start_stub()
            self.await_stub()
        for kind, found in planned.items():
            hooks.run_all(kind, found, self._state("creating"))

    def _note(self, cgroup: Cgroup) -> None:
        mounts = [self.rootfs_path] if self._mounts else []
        entry = {"bundle": self._request.bundle, "mounts": mounts, "cgroups": list(cgroup.dirs)}
        parents = cgroup.missing_parents()

        def note(state: dict[str, Any]) -> None:
            state["containers"][self._request.id] = entry
            state["cgroup_parents"].extend(parents)

        self._store.change(note)

    def _forget(self) -> None:
        """A disk that is full must not keep a container from going: what the state file still names is gone then."""
        try:
            self._store.change(lambda state: state["containers"].pop(self._request.id, None))
        except HakoError as exc:
            self._warn(str(exc))

    def _hooks_of(self, kind: str) -> tuple[oci.Hook, ...]:
        return getattr(self._hooks, kind, None) or ()

    def _state(self, status: str) -> bytes:
        spec = self._request.spec
        return state_json(
            version=spec.oci_version,
            container_id=self._request.id,
            status=status,
            pid=0 if status == "stopped" else self.pid,
            bundle=self._request.bundle,
            annotations=spec.annotations,
        )


def _nothing() -> None:
    """How a stub is started before anything is prepared."""
