"""OCI spec -> what the child does, as plain data: pure, and complete before the fork.

Owns: every decision that the spec alone determines, and its validation. Performs nothing. Called by
container.py; child.py reads the result.

Left to others on purpose: AppArmor and SELinux labels (the guest kernel has neither), the cgroup limits
(agent.cgroups).
"""

from __future__ import annotations

import os

from agent import capabilities, devices, hooks, mounts, namespaces, rlimits, rootfs, seccomp, users
from agent.container import attributes
from agent.errors import InvalidSpec, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.api import agent_pb2, oci_pb2
    from agent.cgroups import Cgroup
    from agent.hooks import Hook

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OOM_SCORE_LIMIT = 1000
FILTERS_KEPT = 4

_filters: dict[bytes, tuple[bytes, int]] = {}


class ProcessPlan:
    """One process: of a container (init) or in one (exec)."""

    __slots__ = (
        "args", "attributes", "capabilities", "console_size", "cwd", "environment", "identity",
        "no_new_privs", "oom_score_adj", "rlimits", "seccomp", "seccomp_flags", "stdio", "terminal",
    )  # fmt: skip

    args: list[str]
    attributes: attributes.Attributes
    capabilities: capabilities.Capabilities
    console_size: tuple[int, int]
    """rows, columns; zeros: as the kernel makes it"""
    cwd: str
    environment: dict[str, str]
    identity: users.Identity
    no_new_privs: bool
    oom_score_adj: int | None
    rlimits: rlimits.Limits
    seccomp: bytes
    """the filter's program; empty: no filter"""
    seccomp_flags: int
    stdio: Sequence[int]
    """descriptors that become 0, 1, 2; -1: /dev/null"""
    terminal: bool


class InitPlan:
    """A container: its namespaces, its root, its first process."""

    __slots__ = (
        "bundle", "cgroup", "devices", "domainname", "hooks_create_container", "hooks_start_container",
        "hostname", "keyring", "links_made", "masked_paths", "mounts", "namespaces", "process", "propagation", "readonly",
        "readonly_paths", "rootfs", "sysctls", "wait_for_hooks",
    )  # fmt: skip

    bundle: str
    cgroup: Cgroup
    devices: list[devices.Device]
    domainname: str
    hooks_create_container: list[Hook]
    hooks_start_container: list[Hook]
    hostname: str
    keyring: str
    links_made: bool
    """the symlinks of /dev are there already"""
    masked_paths: list[str]
    mounts: list[mounts.MountOp]
    namespaces: namespaces.Plan
    process: ProcessPlan
    propagation: int
    readonly: bool
    readonly_paths: list[str]
    rootfs: str
    sysctls: list[tuple[str, str]]
    wait_for_hooks: bool
    """stop before the root is sealed, for hooks that may still change it"""


class ExecPlan:
    """A further process: the namespaces to join (kind -> descriptor, in that order) and itself."""

    __slots__ = ("beside", "cgroup", "joins", "keyring", "process")

    beside: int
    """the container's init, as numbered where the process is"""
    cgroup: Cgroup
    joins: list[tuple[str, int]]
    keyring: str
    process: ProcessPlan


def plan_init(
    cid: str,
    spec: oci_pb2.Spec,
    bundle: str,
    cgroup: Cgroup,
    shared_namespaces: Mapping[str, str],
    pid_namespace: str | None,
    string_user: agent_pb2.StringUser | None,
) -> InitPlan:
    """The plan of a container. Raises InvalidSpec or Unsupported. `stdio` is left to the caller."""
    linux = spec.Linux
    _refuse_unsupported(linux)
    result = InitPlan()
    result.bundle = bundle
    result.cgroup = cgroup
    result.namespaces = namespaces.plan(linux, shared_namespaces, pid_namespace)
    if not spec.Root.Path:
        raise InvalidSpec("root.path", "is missing")
    result.rootfs = os.path.join(bundle, spec.Root.Path)
    result.readonly = spec.Root.Readonly
    result.propagation = rootfs.propagation(linux.RootfsPropagation)
    own_cgroup_view = result.namespaces.has("cgroup")
    result.mounts = mounts.plan(spec.Mounts, bundle, "" if own_cgroup_view else cgroup.directory)
    if result.namespaces.has("user"):
        mounts.stage_what_user_namespaces_may_not(result.mounts, result.namespaces, bundle)
    result.devices = devices.plan(linux.Devices) if devices.are_wanted(result.mounts) else []
    result.masked_paths = list(linux.MaskedPaths)
    result.readonly_paths = list(linux.ReadonlyPaths)
    result.sysctls = plan_sysctls(linux.Sysctl)
    result.hostname, result.domainname = _names(spec, result.namespaces)
    result.keyring = "_ses." + cid
    result.links_made = False
    result.hooks_create_container = hooks.plan(spec.Hooks.CreateContainer)
    result.hooks_start_container = hooks.plan(spec.Hooks.StartContainer)
    result.wait_for_hooks = bool(
        spec.Hooks.Prestart or spec.Hooks.CreateRuntime or result.hooks_create_container
    )
    result.process = plan_process(
        spec.Process, linux, seccomp_filter=seccomp_filter(linux), string_user=string_user
    )
    return result


def seccomp_filter(linux: oci_pb2.Linux) -> tuple[bytes, int]:
    """(program, flags) of the container's profile, or those that the host has compiled; no program without either.

    Compiling takes long, and the containers of a node have few different profiles.
    """
    if not linux.HasField("Seccomp"):
        return b"", 0
    if linux.Seccomp.Program:
        return linux.Seccomp.Program, linux.Seccomp.ProgramFlags
    key = linux.Seccomp.SerializeToString(deterministic=True)
    if key not in _filters:
        compiled = (seccomp.compile(linux.Seccomp), seccomp.flags(linux.Seccomp))
        if len(_filters) >= FILTERS_KEPT:
            del _filters[next(iter(_filters))]
        _filters[key] = compiled
    return _filters[key]


def _refuse_unsupported(linux: oci_pb2.Linux) -> None:
    """What would be a lie to ignore: it changes what the container can reach or how fast it is."""
    if linux.NetDevices:
        raise Unsupported("linux.netDevices: links are the sandbox's in the guest, not a container's")
    if linux.HasField("IntelRdt"):
        raise Unsupported("linux.intelRdt: the guest has no resource control of caches")


def _names(spec: oci_pb2.Spec, plan: namespaces.Plan) -> tuple[str, str]:
    """Host and domain name to set; none without a UTS namespace, where they would be the agent's."""
    return (spec.Hostname, spec.Domainname) if plan.has("uts") else ("", "")


def plan_sysctls(sysctls: Mapping[str, str]) -> list[tuple[str, str]]:
    """(path below /proc/sys, value). All are allowed: the kernel is the pod's own. Raises InvalidSpec."""
    result = []
    for name in sorted(sysctls):
        # As sysctl(8): the first separator decides which of "." and "/" is the other.
        slash, dot = name.find("/"), name.find(".")
        swap = slash < 0 or 0 <= dot < slash
        path = name.translate({46: "/", 47: "."}) if swap else name
        parts = path.split("/")
        if "" in parts or "." in parts or ".." in parts or "\0" in path:
            raise InvalidSpec("linux.sysctl", f"{name!r} is not the name of a sysctl")
        result.append((path, sysctls[name]))
    return result


def plan_process(
    process: oci_pb2.Process,
    linux: oci_pb2.Linux,
    *,
    seccomp_filter: tuple[bytes, int],
    string_user: agent_pb2.StringUser | None,
    container: ProcessPlan | None = None,
) -> ProcessPlan:
    """The plan of a process; `linux` is its container's. Raises InvalidSpec.

    `container` is the plan of the container's init when this is an exec, whose capabilities are the
    container's where it names none.
    """
    result = ProcessPlan()
    result.args = _arguments(process)
    result.environment = _environment(process)
    result.cwd = _cwd(process)
    result.identity = users.from_spec(process.User, string_user)
    if container is not None and not process.HasField("Capabilities"):
        result.capabilities = container.capabilities
    else:
        caps = process.Capabilities if process.HasField("Capabilities") else None
        result.capabilities = capabilities.from_spec(caps)
    result.rlimits = rlimits.plan(process.Rlimits)
    result.no_new_privs = process.NoNewPrivileges
    result.oom_score_adj = _oom_score_adj(process)
    result.terminal = process.Terminal
    size = process.ConsoleSize
    result.console_size = (size.Height, size.Width)
    result.attributes = attributes.plan(process, linux, is_exec=container is not None)
    result.seccomp, result.seccomp_flags = seccomp_filter
    result.stdio = (-1, -1, -1)
    return result


def _arguments(process: oci_pb2.Process) -> list[str]:
    if not process.Args or not process.Args[0]:
        raise InvalidSpec("process.args", "must name a program")
    args = list(process.Args)
    if any("\0" in arg for arg in args):
        raise InvalidSpec("process.args", "must not hold a NUL")
    return args


def _environment(process: oci_pb2.Process) -> dict[str, str]:
    """Of a variable that is given twice the last one counts."""
    result = {}
    for entry in process.Env:
        name, separator, value = entry.partition("=")
        if not name or not separator or "\0" in entry:
            raise InvalidSpec("process.env", f"{entry!r} is not NAME=VALUE")
        result[name] = value
    return result


def _cwd(process: oci_pb2.Process) -> str:
    cwd = process.Cwd or "/"
    if not cwd.startswith("/") or "\0" in cwd:
        raise InvalidSpec("process.cwd", f"{cwd!r} is not an absolute path")
    return cwd


def _oom_score_adj(process: oci_pb2.Process) -> int | None:
    if not process.HasField("OOMScoreAdj"):
        return None
    if abs(process.OOMScoreAdj) > OOM_SCORE_LIMIT:
        raise InvalidSpec("process.oomScoreAdj", f"{process.OOMScoreAdj} is not within -1000 and 1000")
    return process.OOMScoreAdj
