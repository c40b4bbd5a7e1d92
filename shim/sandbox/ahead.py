"""A pod's machine, begun before the first Create asks for it.

Owns: what of a pod can be told from its bundle alone, and that nothing is left of it if no Create comes. Must not know: the
engine's requests, the guest. Called by shim/task/podprocess.py before it imports what serves requests: QEMU takes longer to
start (50 ms) than Python to load the rest. Sandbox takes it over with the first container (`Factory.take_ahead`).

Not for a pod with hooks, which may change its network before its machine is made. Everything that fails here is left to
Create, whose answer the engine shows.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from shim import paths
from shim.errors import HakoError
from shim.oci import grouping
from shim.oci import spec as oci
from shim.sandbox import hostplan, overrides, ownfiles, stub
from shim.sandbox.fate import Fate
from shim.sandbox.launch import Launched, Launching
from shim.sandbox.store import Store
from shim.trace import Marks

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.config import Config
    from shim.sandbox.hostside import Request
    from shim.sandbox.plan import SandboxPlan


class Ahead:
    """See the module. `undo` takes back the processes; it is empty once a machine has been built on them."""

    def __init__(self, config: Config, plan: SandboxPlan, bundle: str, store: Store, netns_fd: int) -> None:
        self.config = config
        self.plan = plan
        self.bundle = bundle
        self.store = store
        self.netns_fd = netns_fd
        self.undo = ExitStack()
        self.fate = Fate()
        self.launched: Launched

    @property
    def netns(self) -> str:
        """Host path of the pod's network namespace."""
        return self.plan.netns or f"/proc/{os.getpid()}/fd/{self.netns_fd}"

    def is_for(self, request: Request) -> bool:
        """Whether the container that is created has the bundle that was read, and files such as were expected."""
        if os.path.realpath(request.bundle) != os.path.realpath(self.bundle):
            return False
        return not self.plan.own_files or ownfiles.are_own(request.spec, request.bundle, request.rootfs)

    def end(self) -> None:
        """End what nobody has built on. Idempotent."""
        self.fate.release()
        self.undo.close()

    def close(self) -> None:
        """Nobody has taken it over: nothing is left of it."""
        self.end()
        if self.netns_fd >= 0:
            os.close(self.netns_fd)
        self.store.remove()


def begin(config: Config, bundle: str, sandbox_id: str, namespace: str, log: Callable[[str, str], None]) -> Ahead | None:
    """What was begun; None where that is not certain to be wanted, or failed. `bundle`: host path."""
    try:
        spec = oci.load(bundle)
        annotations = spec.annotations or {}
        if spec.hooks is not None or grouping.role_of(annotations) == grouping.CONTAINER:
            return None
        config = overrides.apply(config, annotations)
        plan = hostplan.of_pod(config, spec, bundle, sandbox_id, namespace)
        store = Store.create(paths.sandbox_dir(sandbox_id, namespace), sandbox_id, namespace)
        ahead = Ahead(config, plan, bundle, store, -1 if plan.netns else stub.new_netns())
    except (HakoError, OSError, ValueError):
        return None
    try:
        launching = Launching(config, plan, ahead.netns, store, ahead.undo, log, ahead.fate, from_template=True)
        ahead.launched = launching.launch(Marks())
    except (HakoError, OSError, ValueError):
        ahead.close()
        return None
    return ahead
