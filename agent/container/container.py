"""A container of the guest, from create to remove: the verbs that agent.sandbox calls.

Owns: the container's state, its processes, the descriptors of its namespaces and its cgroup. What happens
in the child is child.py, the fork and its conversation spawn.py, decisions from the spec plan.py.

    create()   cgroup, fork, namespaces, mounts, root; the init waits             -> CREATED
    start()    the init executes its program                                      -> RUNNING
    exec()     a further process; joins namespaces by descriptors held since create()
    signal() pause() resume() update() stats() pids()
    (exit)     noticed in the loop                                                -> STOPPED
    remove()   nothing of it is left: process, cgroup, descriptor; its mounts die with its mount namespace

create(), start(), exec() and remove() block the loop for the time of the work, bounded as spawn.py, hooks.py
and REMOVE_SECONDS say.
"""

from __future__ import annotations

import os

from agent import capabilities, hooks, mounts, namespaces
from agent.container import plan as planning
from agent.container import spawn, state
from agent.container.rollback import Rollback
from agent.errors import AlreadyExists, DeadlineExceeded, NotFound, StepError, WrongState, step_error
from agent.linux import syscalls
from agent.process.process import Process, wait_all
from agent.process.stdio import Stdio, StdioPlan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.api import agent_pb2, oci_pb2
    from agent.cgroups import Cgroup
    from agent.container.standby import Standby
    from agent.linux.loop import Loop

REMOVE_SECONDS = 10.0
SIGKILL = 9
JOIN_ORDER = ("ipc", "uts", "network", "cgroup", "time", "mount", "user")
"""The user namespace last: before, the agent's privileges join what the user namespace does not own."""
WARNINGS_KEPT = 20

_own_oom_score: list[int] = []


def prepare() -> None:
    """Read once, as the agent starts, what must not be read while containers run."""
    capabilities.last()
    namespaces.own_pid_namespace()
    own_oom_score()


def own_oom_score() -> int:
    """The agent's own oom_score_adj, which a child would inherit."""
    if not _own_oom_score:
        with open("/proc/self/oom_score_adj", encoding="ascii") as file:
            _own_oom_score.append(int(file.read()))
    return _own_oom_score[0]


class Container:
    """See the module. One thread; every method raises AgentError, and WrongState before anything happens."""

    def __init__(
        self,
        loop: Loop,
        cid: str,
        spec: oci_pb2.Spec,
        bundle_dir: str,
        cgroup: Cgroup,
        shared_namespaces: Mapping[str, str],
        extra_pidns: str | None,
        string_user: agent_pb2.StringUser | None = None,
    ) -> None:
        """`shared_namespaces`: kind -> guest path of the sandbox's; `extra_pidns`: path of the pod's pid ns.

        `bundle_dir` exists, is the agent's, and is what relative paths of the spec are relative to.
        """
        self._loop = loop
        self.id = cid
        self.spec = spec
        self.bundle = bundle_dir
        self.cgroup = cgroup
        self.status = state.CREATING
        self.processes: dict[str, Process] = {}
        """exec_id -> process; the init is `init`"""
        self.warnings: list[str] = []
        """what went wrong without failing a verb; the service may log and clear it"""
        self._shared_namespaces = shared_namespaces
        self._pid_namespace_path = extra_pidns
        self._string_user = string_user
        self._standby: Standby | None = None
        self._status_before_pause = state.CREATED
        self._namespaces: dict[str, int] = {}
        self._lingering: list[Stdio] = []
        self._init: Process | None = None
        self._spawned: spawn.Spawned | None = None
        self._plan: planning.InitPlan | None = None

    @property
    def init(self) -> Process:
        """The first process. NotFound before create()."""
        if self._init is None:
            raise NotFound("process", self.id)
        return self._init

    def process(self, exec_id: str) -> Process:
        """The init for "" or the container's id, else an exec. Raises NotFound."""
        if exec_id in ("", self.id):
            return self.init
        if exec_id not in self.processes:
            raise NotFound("process", exec_id)
        return self.processes[exec_id]

    def namespace_path(self, kind: str) -> str:
        """A path (for other containers) to a namespace that this one made or joined; "" if it has none."""
        fd = self._namespaces.get(kind, -1)
        return f"/proc/self/fd/{fd}" if fd >= 0 else ""

    # --- create and start -----------------------------------------------------------------------------------

    def create(self, io: StdioPlan, standby: Standby | None = None) -> None:
        """Make everything and stop before the program. Nothing is left if it fails; `io`'s sockets are
        closed.

        `standby`, ours from now on, becomes its first process, in the cgroup that it is in.
        """
        if self._plan is not None:
            raise WrongState(self.id, state.NAMES[self.status], "create")
        rollback = Rollback()
        stdio = Stdio(self._loop, io)
        rollback.push(stdio.close)
        try:
            if standby is not None:
                self._standby, self.cgroup = standby, standby.cgroup
                rollback.push(self._end_standby)
            self._plan = plan = self._make_plan(io)
            self._prepare_namespaces(plan, rollback)
            self._prepare_cgroup(rollback)
            self._prepare_user_namespace(plan, stdio)
            spawned = self._spawn(plan, stdio)
            rollback.push(spawned.kill)
            self._hold_namespaces(plan, spawned.pid, rollback)
            _set_oom_score(spawned.pid, plan.process)
            self._init = self._new_process(spawned, "", stdio)
        except BaseException as error:
            rollback.unwind(error)
            raise
        rollback.release()
        self._spawned = spawned
        self._init.on_exit(self._init_exited)
        self.status = state.CREATED

    def start(self) -> None:
        """Let the init execute its program, then run the poststart hooks."""
        state.require(self.id, self.status, "start")
        spawned, self._spawned = self._spawned, None
        assert spawned is not None and self._plan is not None
        start_hooks = self._plan.hooks_start_container
        # The container's hooks see the pid of their own pid namespace.
        pid = 1 if self._plan.namespaces.new & syscalls.CLONE_NEWPID else self.init.pid
        try:
            spawned.start(self._hook_state("created", pid, start_hooks), _seconds(start_hooks))
        except BaseException:
            self.init.signal(SIGKILL)
            raise
        self.status = state.RUNNING
        self._run_poststart()

    def _make_plan(self, io: StdioPlan) -> planning.InitPlan:
        plan = planning.plan_init(
            self.id,
            self.spec,
            self.bundle,
            self.cgroup,
            self._shared_namespaces,
            self._pid_namespace_path,
            self._string_user,
        )
        plan.process.terminal = io.terminal
        return plan

    def _prepare_namespaces(self, plan: planning.InitPlan, rollback: Rollback) -> None:
        """Open what is joined, and the mappings of ID-mapped mounts."""
        rollback.push(lambda: namespaces.close_paths(plan.namespaces))
        try:
            namespaces.open_paths(plan.namespaces)
            for operation, mount in zip(plan.mounts, self.spec.Mounts, strict=True):
                if operation.options.idmap:
                    operation.userns = namespaces.user_namespace(*mounts.id_maps(mount, plan.namespaces))
                    rollback.push(operation.close_userns)
        except OSError as error:
            raise step_error("open namespace", error) from error

    def _prepare_cgroup(self, rollback: Rollback) -> None:
        limits = self.spec.Linux.Resources if self.spec.Linux.HasField("Resources") else None
        if self._standby is not None:
            self.cgroup.take_over(limits)
        else:
            self.cgroup.create(limits)
        rollback.push(self.cgroup.remove)

    def _end_standby(self) -> None:
        standby, self._standby = self._standby, None
        if standby is not None:
            standby.end()

    def _prepare_user_namespace(self, plan: planning.InitPlan, stdio: Stdio) -> None:
        """Its root user owns the streams, and may make cgroups below the container's."""
        if not plan.namespaces.has("user"):
            return
        uid = namespaces.to_outside(plan.namespaces.uid_map, 0)
        gid = namespaces.to_outside(plan.namespaces.gid_map, 0)
        stdio.give_to(uid, gid)
        if plan.namespaces.has("cgroup"):
            self.cgroup.delegate(uid, gid)

    def _spawn(self, plan: planning.InitPlan, stdio: Stdio) -> spawn.Spawned:
        standby, self._standby = self._standby, None
        begun = standby.become(self.id, self.spec, self._string_user, plan, stdio) if standby is not None else None
        hook_seconds = _seconds(plan.hooks_create_container)
        return spawn.spawn_init(plan, stdio, self._run_create_hooks, hook_seconds, begun)

    def _hold_namespaces(self, plan: planning.InitPlan, pid: int, rollback: Rollback) -> None:
        """Keep every namespace that an exec joins; ID-mapped mounts have theirs from now on."""
        for operation in plan.mounts:
            operation.close_userns()
        rollback.push(self._close_namespaces)
        self._namespaces.update(plan.namespaces.joined)
        plan.namespaces.joined.clear()
        for kind, flag in namespaces.FLAGS.items():
            if plan.namespaces.new & flag:
                self._namespaces[kind] = namespaces.open_of(pid, kind)

    def _new_process(self, spawned: spawn.Spawned, exec_id: str, stdio: Stdio) -> Process:
        master = spawned.release()
        if master >= 0:
            stdio.attach_terminal(master)
        stdio.begin()
        return Process(self._loop, spawned.pid, exec_id, stdio)

    # --- further processes ----------------------------------------------------------------------------------

    def exec(
        self,
        exec_id: str,
        process: oci_pb2.Process,
        io: StdioPlan,
        string_user: agent_pb2.StringUser | None = None,
    ) -> Process:
        """Run a further process; returns once its program runs. `io`'s sockets are closed if it fails."""
        rollback = Rollback()
        stdio = Stdio(self._loop, io)
        rollback.push(stdio.close)
        try:
            state.require(self.id, self.status, "exec")
            if exec_id in self.processes or exec_id in ("", self.id):
                raise AlreadyExists("process", exec_id)
            plan = self._plan_exec(process, io, string_user)
            if "user" in self._namespaces:
                self._prepare_user_streams(stdio)
            pid_namespace = self._namespaces.get("pid", namespaces.OWN_PID_NAMESPACE)
            spawned = spawn.spawn_exec(plan, pid_namespace, stdio)
            rollback.push(spawned.kill)
            _set_oom_score(spawned.pid, plan.process)
            spawned.start(b"", 0)
            result = self._new_process(spawned, exec_id, stdio)
        except BaseException as error:
            rollback.unwind(error)
            raise
        rollback.release()
        self.processes[exec_id] = result
        return result

    def _prepare_user_streams(self, stdio: Stdio) -> None:
        assert self._plan is not None
        spaces = self._plan.namespaces
        stdio.give_to(namespaces.to_outside(spaces.uid_map, 0), namespaces.to_outside(spaces.gid_map, 0))

    def _plan_exec(
        self, process: oci_pb2.Process, io: StdioPlan, string_user: agent_pb2.StringUser | None
    ) -> planning.ExecPlan:
        assert self._plan is not None
        container = self._plan.process
        result = planning.ExecPlan()
        result.cgroup = self.cgroup
        result.keyring = self._plan.keyring
        result.joins = [(kind, self._namespaces[kind]) for kind in JOIN_ORDER if kind in self._namespaces]
        result.beside = 1 if self._plan.namespaces.new & syscalls.CLONE_NEWPID else self.init.pid
        result.process = planning.plan_process(
            process,
            self.spec.Linux,
            seccomp_filter=(container.seccomp, container.seccomp_flags),
            string_user=string_user,
            container=container,
        )
        result.process.terminal = io.terminal
        return result

    def forget(self, exec_id: str) -> None:
        """Drop an exec that has exited. Output that its own children still write goes on to its stream."""
        process = self.processes.pop(exec_id, None)
        if process is None:
            return
        stdio = process.stdio
        self._lingering.append(stdio)
        stdio.on_drained(lambda: self._lingering.remove(stdio) if stdio in self._lingering else None)

    # --- control --------------------------------------------------------------------------------------------

    def signal(self, exec_id: str, signum: int) -> None:
        """Signal a process; SIGKILL with exec_id "" goes to every process of the container.

        The container's id as exec_id means the init alone. A process that has exited is no error. A paused
        container that is killed is resumed to die.
        """
        state.require(self.id, self.status, "signal")
        if not exec_id and signum == SIGKILL:
            self._kill_all()
            return
        try:
            self.process(exec_id).signal(signum)
        except OSError as error:
            raise StepError(f"send signal {signum}", error.errno or 0) from error

    def _kill_all(self) -> None:
        self.cgroup.kill()
        for process in self._everyone():
            process.signal(SIGKILL)  # also where there is no cgroup that could kill
        if self.status == state.PAUSED:
            self.cgroup.thaw()
            self.status = self._status_before_pause

    def pause(self) -> None:
        """Freeze every process."""
        state.require(self.id, self.status, "pause")
        self.cgroup.freeze()
        self._status_before_pause, self.status = self.status, state.PAUSED

    def resume(self) -> None:
        """Let them run again."""
        state.require(self.id, self.status, "resume")
        self.cgroup.thaw()
        self.status = self._status_before_pause

    def update(self, resources: oci_pb2.LinuxResources) -> None:
        """Change the cgroup's limits."""
        state.require(self.id, self.status, "update")
        self.cgroup.apply(resources)

    def stats(self) -> agent_pb2.CgroupStats:
        """What the cgroup has used."""
        state.require(self.id, self.status, "stats")
        return self.cgroup.stats()

    def pids(self) -> list[int]:
        """The pids of all its processes, in the agent's pid namespace."""
        state.require(self.id, self.status, "pids")
        return self.cgroup.pids()

    def _everyone(self) -> list[Process]:
        first = [self._init] if self._init is not None else []
        return [*first, *self.processes.values()]

    def _init_exited(self, _process: Process) -> None:
        """All that shares the init's own pid namespace died with it; in a shared one the cgroup says who."""
        self.status = state.STOPPED
        assert self._plan is not None
        if not self._plan.namespaces.new & syscalls.CLONE_NEWPID:
            try:
                self.cgroup.kill()
            except StepError as error:
                self._warn(str(error))

    # --- remove ---------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Kill what is left, run the poststop hooks, give everything back. Idempotent.

        DeadlineExceeded when processes do not die (blocked in the kernel); then it may be called again.
        """
        if self._init is not None:
            if self._init.exit_status is None or self.status != state.STOPPED:
                self._kill_all()
            if not wait_all(self._everyone(), REMOVE_SECONDS):
                raise DeadlineExceeded(f"killing the processes of container {self.id}", REMOVE_SECONDS)
        self.status = state.STOPPED
        if self._spawned is not None:
            self._spawned.abandon()
            self._spawned = None
        for stdio in [process.stdio for process in self._everyone()] + self._lingering[:]:
            stdio.close()
        self._lingering.clear()
        self.processes.clear()
        self._close_namespaces()
        if self._init is not None:
            self._run_poststop()
            self.cgroup.remove()
            self._init = None

    def _close_namespaces(self) -> None:
        while self._namespaces:
            os.close(self._namespaces.popitem()[1])

    # --- hooks ----------------------------------------------------------------------------------------------

    def _run_create_hooks(self, pid: int) -> bytes:
        """prestart and createRuntime, in the agent; the state that the container's own hooks get."""
        for kind, wanted in (
            ("prestart", self.spec.Hooks.Prestart),
            ("createRuntime", self.spec.Hooks.CreateRuntime),
        ):
            planned = hooks.plan(wanted)
            hooks.run_all(kind, planned, self._hook_state("creating", pid, planned))
        assert self._plan is not None
        inner = 1 if self._plan.namespaces.new & syscalls.CLONE_NEWPID else pid
        return self._hook_state("creating", inner, self._plan.hooks_create_container)

    def _run_poststart(self) -> None:
        planned = hooks.plan(self.spec.Hooks.Poststart)
        try:
            hooks.run_all("poststart", planned, self._hook_state("running", self.init.pid, planned))
        except StepError:
            self._kill_all()
            raise

    def _run_poststop(self) -> None:
        """A failed one is a warning, and the others run, as OCI has it."""
        for hook in hooks.plan(self.spec.Hooks.Poststop):
            try:
                hooks.run_all("poststop", [hook], self._hook_state("stopped", 0, [hook]))
            except StepError as error:
                self._warn(str(error))

    def _hook_state(self, status: str, pid: int, planned: list[hooks.Hook]) -> bytes:
        """The state JSON; empty where no hook would read it."""
        if not planned:
            return b""
        annotations = dict(self.spec.Annotations)
        return hooks.state_json(self.id, status, pid, self.bundle, annotations, self.spec.Version)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        del self.warnings[:-WARNINGS_KEPT]


def _seconds(planned: list[hooks.Hook]) -> float:
    return sum(hook.timeout for hook in planned)


def _set_oom_score(pid: int, process: planning.ProcessPlan) -> None:
    """By the agent: a process in a user namespace may not write it. Unset means 0 and not the agent's own."""
    value = process.oom_score_adj
    if value is None and own_oom_score() == 0:
        return
    try:
        namespaces.write_file(f"/proc/{pid}/oom_score_adj", str(value or 0))
    except OSError as error:
        raise step_error("set oom_score_adj", error) from error
