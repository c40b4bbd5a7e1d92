"""A VM that was restored and exercised before any pod wanted it.

Owns: how it is made (the steps of builder.py, for nobody's plan), the throw-away container in it, what pod it fits, what
becomes of its processes when it gets one. Must not know: who keeps it waiting (shim/task/pool.py), what the pod does with
it (builder.py).

An emulator translates code when it runs for the first time: a restored VM pays for that with its first container. So
here a whole container has been: virtio-fs, streams, mounts, exec. Nothing of it is left, and the random pool is
seeded before it, and once more for the pod. A VM serves one pod, ever: there is no way back from `enter`.

    <state>/pool/NAME/state.json    as a pod has it (store.py), so that cleanup.py takes away what a killed process left
                     /share/        what its guest sees, empty until it has a pod

Its memory is charged to the cgroup in which it was made; what it touches later, to the pod's.
"""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from agent.api import agent_pb2, empty_pb2, pool_pb2
from shim import paths, process
from shim.agent_client import POOL, STDIO_PORT
from shim.errors import HakoError
from shim.sandbox import cleanup, clone, guestfiles, hostfacts, templatebuild
from shim.sandbox.builder import Building
from shim.sandbox.disks import DiskFiles
from shim.sandbox.fate import Fate
from shim.sandbox.machine import STREAM_TIMEOUT
from shim.sandbox.placement import SharedFiles
from shim.sandbox.plan import DEFAULT_SHM, SandboxPlan
from shim.sandbox.store import Store, is_alive

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.agent_client import AgentClient
    from shim.cgroups import Cgroup
    from shim.config import Config
    from shim.hypervisor.base import Vm
    from shim.hypervisor.vsock import Transport
    from shim.sandbox.placement import Files
    from shim.share.tree import ShareTree

NAMESPACE = "hako-pool"
EXERCISE = "exercise"  # the throw-away container's place in the share
BACKGROUND, NORMAL = 10, 0  # niceness while it is made, and from then on


class Spare:
    """See the module. `vm`, `agent`, `files`, `vsock` and `fate` are the pod's from `enter` on."""

    def __init__(self, config: Config, store: Store, undo: ExitStack, coming: clone.Clone, key: str) -> None:
        self.config = config
        self.key = key
        self.clone = coming
        self.directory = store.directory
        self.stdio = config.agent.stdio
        self.vm: Vm
        self.agent: AgentClient
        self.files: Files
        self.vsock: Transport
        self.fate: Fate
        self._store = store
        self._undo = undo
        self._closing = threading.Lock()
        self._family: list[int] = []

    def settle(self) -> None:
        """It is made: find all of its processes, which are all children of ours, and from now on as important as others."""
        ourselves, *self._family = process.families([os.getpid()])
        for pid in (ourselves, *self._family):
            _renice(pid, NORMAL)

    def unfit(self, config: Config, key: str) -> str:
        """Why it is not for a pod with this configuration and template; "" if it is."""
        if config != self.config:
            return "the configuration is another"
        return "" if key == self.key else f"it came from template {self.key}, and {key or 'none'} is wanted"

    def enter(self, cgroup: Cgroup) -> Callable[[], None]:
        """Begin to move its processes into the pod's cgroup; what is returned waits for that and raises HakoError."""
        failed: list[HakoError] = []

        def work() -> None:
            try:
                for pid in self._family:
                    cgroup.add(pid)
                    _take_our_oom_score(pid)
            except HakoError as exc:
                failed.append(exc)

        thread = threading.Thread(target=work, name="hako-cgroups", daemon=True)
        thread.start()

        def finish() -> None:
            thread.join()
            if failed:
                raise failed[0]

        return finish

    def note_in(self, state: dict[str, object]) -> None:
        """What the pod's state file has to say of it."""
        processes = state["processes"]
        assert isinstance(processes, list)
        processes += self._store.state["processes"]
        state["spare"] = self.directory

    def close(self) -> None:
        """End it and take away all that it has on the host. Idempotent."""
        with self._closing:
            self.fate.release()
            self._undo.close()


def make(config: Config, log: Callable[[str, str], None]) -> Spare:
    """A VM out of the template of this configuration, which is made first if there is none. Raises HakoError, OSError.

    It takes as long as its deadlines are (`factory.build_timeout`, `factory.restore_timeout`); nothing is left if it fails.
    """
    os.nice(BACKGROUND)
    templatebuild.build(config, templatebuild.shape(config))
    with ExitStack() as undo:
        name = hostfacts.random_uuid()[:8]
        os.makedirs(paths.socket_dir(), mode=0o711, exist_ok=True)
        store = Store.create(paths.spare_dir(name), name, NAMESPACE)
        undo.callback(store.remove)
        plan = _nobodys_plan(config, name)
        spare = _Making(config, plan, process.NEW_NETNS, store, undo, log, Fate(), from_template=True).make()
        spare.settle()
        undo.pop_all()
        return spare


def sweep() -> None:
    """Take away what processes left that were killed while they had one."""
    for name in paths.entries(paths.spares_root()):
        directory = paths.spare_dir(name)
        if not is_alive(directory):
            cleanup.clean_up(directory, "")


class _Making(Building):
    """The recipe without a pod: no cgroup, no links, a network namespace of its own."""

    def make(self) -> Spare:
        """Raises HakoError."""
        files = guestfiles.find(self._config.guest)
        confine = self._confinement(None)
        saved = self._find_template(files, self._accelerator(files, confine))
        if saved is None:
            raise HakoError("there is no template for it", step="fill the pool")
        with ExitStack() as ours:
            link, share = self._link_share(ours)
            coming = self._begin_clone(saved, confine, share, ours)
            spare = Spare(self._config, self._store, ExitStack(), coming, saved.template.key)
            tree = self._make_share(None, link)
            spare.vsock = self._start_vsock(confine)
            ours.callback(spare.vsock.launched)
            spare.vm = coming.enter(share, spare.vsock.device(), ())
        coming.await_hello(spare.vm)
        spare.agent = agent = self._connect(spare.vsock)
        spare.files = SharedFiles(tree) if tree else DiskFiles(spare.vm, agent, self._config.share, self._log)
        spare.fate = self._fate
        self._exercise(spare, tree)
        spare._undo = self._undo.pop_all()
        return spare

    def _exercise(self, spare: Spare, tree: ShareTree | None) -> None:
        """A container such as pods have, in a sandbox of its own; its streams are not vsock's, so one of those ends, too."""
        seed = os.urandom(clone.SEED_BYTES)
        spare.agent.do("ReseedRandomDev", agent_pb2.ReseedRandomDevRequest(data=seed))
        with spare.vsock.connect(STDIO_PORT, STREAM_TIMEOUT) as stream:
            stream.sendall(b"P")  # the agent waits for the rest of its line, and is told that there is none
        request = pool_pb2.ExerciseRequest(storages=[spare.files.sandbox_storage()])
        root = os.path.join(spare.directory, EXERCISE)
        if tree is not None:
            os.mkdir(root, 0o755)
            self._undo.callback(shutil.rmtree, root, ignore_errors=True)
            request.rootfs = tree.add_rootfs(EXERCISE, root, readonly=False)
        spare.agent.call("Exercise", request, empty_pb2.Empty, service=POOL)
        if tree is not None:
            tree.remove(EXERCISE)
            shutil.rmtree(root)


def _nobodys_plan(config: Config, name: str) -> SandboxPlan:
    hypervisor, host = config.hypervisor, hostfacts.limits()
    return SandboxPlan(
        sandbox_id=name,
        namespace=NAMESPACE,
        hostname="",
        netns="",
        cgroups_path="",
        vcpus=hypervisor.default_vcpus or 1,
        max_vcpus=hypervisor.max_vcpus or host.cpus,
        memory_mib=hypervisor.default_memory,
        max_memory_mib=hypervisor.max_memory or host.memory_mib,
        shm_size=DEFAULT_SHM,
        dns=(),
    )


def _renice(pid: int, niceness: int) -> None:
    """Niceness is each thread's own; one that has just ended, or that we may not raise, stays as it is."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), niceness)
    except OSError:
        pass


def _take_our_oom_score(pid: int) -> None:
    """It was started when our own score was not the pod's yet."""
    try:
        with open("/proc/self/oom_score_adj", encoding="ascii") as stream:
            ours = stream.read()
        with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as stream:
            stream.write(ours)
    except OSError:
        pass  # lowering a score needs CAP_SYS_RESOURCE
