"""config.json of an OCI bundle as frozen, typed values (runtime-spec 1.0 to 1.3).

Owns: the shape of the specification and how a mistake in it is worded (the path of the field). Must not
know: what becomes of it (translate.py), nor defaults that runtimes add. Strict in types; unknown keys are
ignored, as the specification demands; a field that is absent or null is None, because "not given" and 0
differ there.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from shim.errors import InvalidSpec

Strings: TypeAlias = tuple[str, ...]
Uint32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Uint64: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]

NAMESPACE_TYPES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
_VERSION = re.compile(r"^1\.\d+\.\d+")


class _Object(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A JSON object of the specification; names are its keys in snake_case."""


class Box(_Object, frozen=True):
    height: Uint32 = 0
    width: Uint32 = 0


class User(_Object, frozen=True):
    uid: Uint32 = 0
    gid: Uint32 = 0
    umask: Uint32 | None = None
    additional_gids: tuple[Uint32, ...] | None = None
    username: str | None = None


class Capabilities(_Object, frozen=True):
    bounding: Strings | None = None
    effective: Strings | None = None
    inheritable: Strings | None = None
    permitted: Strings | None = None
    ambient: Strings | None = None


class Rlimit(_Object, frozen=True):
    type: str
    soft: Uint64 = 0
    hard: Uint64 = 0


class Scheduler(_Object, frozen=True):
    policy: str
    nice: int | None = None
    priority: int | None = None
    flags: Strings | None = None
    runtime: Uint64 | None = None
    deadline: Uint64 | None = None
    period: Uint64 | None = None


class IOPriority(_Object, frozen=True):
    class_: str = msgspec.field(name="class")
    priority: int | None = None


class CPUAffinity(_Object, frozen=True):
    initial: str | None = None
    final: str | None = None


class Process(_Object, frozen=True):
    """What runs: for a container's init and, as the body of an Exec request, for any further process."""

    cwd: str = "/"
    terminal: bool | None = None
    console_size: Box | None = None
    user: User | None = None
    args: Strings | None = None
    env: Strings | None = None
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] | None = None
    no_new_privileges: bool | None = None
    apparmor_profile: str | None = None
    oom_score_adj: int | None = None
    selinux_label: str | None = None
    scheduler: Scheduler | None = None
    io_priority: IOPriority | None = None
    exec_cpu_affinity: CPUAffinity | None = msgspec.field(default=None, name="execCPUAffinity")


class Root(_Object, frozen=True):
    path: str
    readonly: bool | None = None


class IDMapping(_Object, frozen=True):
    container_id: Uint32 = msgspec.field(default=0, name="containerID")
    host_id: Uint32 = msgspec.field(default=0, name="hostID")
    size: Uint32 = 0


class Mount(_Object, frozen=True):
    destination: str
    source: str | None = None
    type: str | None = None
    options: Strings | None = None
    uid_mappings: tuple[IDMapping, ...] | None = None
    gid_mappings: tuple[IDMapping, ...] | None = None


class Hook(_Object, frozen=True):
    path: str
    args: Strings | None = None
    env: Strings | None = None
    timeout: int | None = None


class Hooks(_Object, frozen=True):
    prestart: tuple[Hook, ...] | None = None
    create_runtime: tuple[Hook, ...] | None = None
    create_container: tuple[Hook, ...] | None = None
    start_container: tuple[Hook, ...] | None = None
    poststart: tuple[Hook, ...] | None = None
    poststop: tuple[Hook, ...] | None = None


class Namespace(_Object, frozen=True):
    type: str
    path: str | None = None


class Device(_Object, frozen=True):
    path: str
    type: str
    major: Int64 | None = None
    minor: Int64 | None = None
    file_mode: Uint32 | None = None
    uid: Uint32 | None = None
    gid: Uint32 | None = None


class DeviceRule(_Object, frozen=True):
    allow: bool
    type: str | None = None
    major: Int64 | None = None
    minor: Int64 | None = None
    access: str | None = None


class Memory(_Object, frozen=True):
    limit: Int64 | None = None
    reservation: Int64 | None = None
    swap: Int64 | None = None
    kernel: Int64 | None = None
    kernel_tcp: Int64 | None = msgspec.field(default=None, name="kernelTCP")
    swappiness: Uint64 | None = None
    disable_oom_killer: bool | None = msgspec.field(default=None, name="disableOOMKiller")
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


class CPU(_Object, frozen=True):
    shares: Uint64 | None = None
    quota: Int64 | None = None
    period: Uint64 | None = None
    burst: Uint64 | None = None
    realtime_runtime: Int64 | None = None
    realtime_period: Uint64 | None = None
    cpus: str | None = None
    mems: str | None = None
    idle: Int64 | None = None


class Pids(_Object, frozen=True):
    limit: Int64 | None = None


class WeightDevice(_Object, frozen=True):
    major: Int64
    minor: Int64
    weight: Uint32 | None = None
    leaf_weight: Uint32 | None = None


class ThrottleDevice(_Object, frozen=True):
    major: Int64
    minor: Int64
    rate: Uint64 = 0


_Throttles: TypeAlias = tuple[ThrottleDevice, ...] | None


class BlockIO(_Object, frozen=True):
    weight: Uint32 | None = None
    leaf_weight: Uint32 | None = None
    weight_device: tuple[WeightDevice, ...] | None = None
    throttle_read_bps_device: _Throttles = None
    throttle_write_bps_device: _Throttles = None
    throttle_read_iops_device: _Throttles = msgspec.field(default=None, name="throttleReadIOPSDevice")
    throttle_write_iops_device: _Throttles = msgspec.field(default=None, name="throttleWriteIOPSDevice")


class HugepageLimit(_Object, frozen=True):
    page_size: str
    limit: Uint64 = 0


class InterfacePriority(_Object, frozen=True):
    name: str
    priority: Uint32 = 0


class NetworkClass(_Object, frozen=True):
    class_id: Uint32 | None = msgspec.field(default=None, name="classID")
    priorities: tuple[InterfacePriority, ...] | None = None


class Rdma(_Object, frozen=True):
    hca_handles: Uint32 | None = None
    hca_objects: Uint32 | None = None


class Resources(_Object, frozen=True):
    """Limits of a container: in config.json and as the body of an Update request."""

    devices: tuple[DeviceRule, ...] | None = None
    memory: Memory | None = None
    cpu: CPU | None = None
    pids: Pids | None = None
    block_io: BlockIO | None = msgspec.field(default=None, name="blockIO")
    hugepage_limits: tuple[HugepageLimit, ...] | None = None
    network: NetworkClass | None = None
    rdma: dict[str, Rdma] | None = None
    unified: dict[str, str] | None = None


class SeccompArg(_Object, frozen=True):
    index: Uint32
    value: Uint64
    op: str
    value_two: Uint64 | None = None


class SeccompRule(_Object, frozen=True):
    names: Strings
    action: str
    errno_ret: Uint32 | None = None
    args: tuple[SeccompArg, ...] | None = None


class Seccomp(_Object, frozen=True):
    default_action: str
    default_errno_ret: Uint32 | None = None
    architectures: Strings | None = None
    flags: Strings | None = None
    listener_path: str | None = None
    listener_metadata: str | None = None
    syscalls: tuple[SeccompRule, ...] | None = None


class IntelRdt(_Object, frozen=True):
    clos_id: str | None = msgspec.field(default=None, name="closID")
    schemata: Strings | None = None
    l3_cache_schema: str | None = msgspec.field(default=None, name="l3CacheSchema")
    mem_bw_schema: str | None = msgspec.field(default=None, name="memBwSchema")
    enable_monitoring: bool | None = None


class Personality(_Object, frozen=True):
    domain: str
    flags: Strings | None = None


class TimeOffset(_Object, frozen=True):
    secs: Int64 = 0
    nanosecs: Uint32 = 0


class NetDevice(_Object, frozen=True):
    name: str | None = None


class MemoryPolicy(_Object, frozen=True):
    mode: str
    nodes: str | None = None
    flags: Strings | None = None


class Linux(_Object, frozen=True):
    uid_mappings: tuple[IDMapping, ...] | None = None
    gid_mappings: tuple[IDMapping, ...] | None = None
    sysctl: dict[str, str] | None = None
    resources: Resources | None = None
    cgroups_path: str | None = None
    namespaces: tuple[Namespace, ...] | None = None
    devices: tuple[Device, ...] | None = None
    net_devices: dict[str, NetDevice] | None = None
    seccomp: Seccomp | None = None
    rootfs_propagation: str | None = None
    masked_paths: Strings | None = None
    readonly_paths: Strings | None = None
    mount_label: str | None = None
    intel_rdt: IntelRdt | None = None
    memory_policy: MemoryPolicy | None = None
    personality: Personality | None = None
    time_offsets: dict[str, TimeOffset] | None = None


class Spec(_Object, frozen=True):
    """A whole config.json."""

    oci_version: str
    root: Root | None = None
    process: Process | None = None
    hostname: str | None = None
    domainname: str | None = None
    mounts: tuple[Mount, ...] | None = None
    hooks: Hooks | None = None
    annotations: dict[str, str] | None = None
    linux: Linux | None = None

    def namespace(self, kind: str) -> Namespace | None:
        """The entry for a kind of namespace, None if the container shares the host's."""
        entries = (self.linux.namespaces if self.linux else None) or ()
        return next((entry for entry in entries if entry.type == kind), None)


_Struct = TypeVar("_Struct", bound=_Object)


def load(bundle: str) -> Spec:
    """The checked spec of a bundle directory (host path). Raises InvalidSpec, also without config.json."""
    file = os.path.join(bundle, "config.json")
    try:
        with open(file, "rb") as stream:
            return parse(stream.read())
    except OSError as exc:
        raise InvalidSpec("config.json", f"{exc.strerror}: {file}") from exc


def parse(data: bytes | str) -> Spec:
    """Checked spec from JSON text. Raises InvalidSpec with the path of the field."""
    spec = decode(data, Spec, "")
    check(spec)
    return spec


def decode(data: bytes | str, kind: type[_Struct], name: str) -> _Struct:
    """A part of the specification that travels alone (Process, Resources); `name` starts the field's path."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as exc:
        reason, _, where = str(exc).partition(" - at `$")
        field = (name + where.rstrip("`")).lstrip(".")
        raise InvalidSpec(field or "config.json", reason) from None
    except msgspec.DecodeError as exc:
        raise InvalidSpec(name or "config.json", f"not JSON: {exc}") from None


def check(spec: Spec) -> None:
    """What the types cannot say. Raises InvalidSpec."""
    if not _VERSION.match(spec.oci_version):
        raise InvalidSpec("ociVersion", f"{spec.oci_version!r} is not a 1.x version")
    if spec.root is None or not spec.root.path:
        raise InvalidSpec("root.path", "missing")
    if spec.linux is None:
        raise InvalidSpec("linux", "missing: hako runs Linux containers only")
    for index, mount in enumerate(spec.mounts or ()):
        if not mount.destination:
            raise InvalidSpec(f"mounts[{index}].destination", "empty")
    _check_namespaces(spec.linux.namespaces or ())


def check_runnable(spec: Spec) -> None:
    """Demands on the spec of a container that is to be created. Raises InvalidSpec."""
    if spec.process is None:
        raise InvalidSpec("process", "missing")
    check_process(spec.process)


def check_process(process: Process) -> None:
    """Demands on a process that is to be started. Raises InvalidSpec."""
    if not process.args:
        raise InvalidSpec("process.args", "missing or empty")
    if not process.cwd.startswith("/"):
        raise InvalidSpec("process.cwd", f"{process.cwd!r} is not absolute")


def _check_namespaces(namespaces: tuple[Namespace, ...]) -> None:
    seen = set()
    for index, namespace in enumerate(namespaces):
        field = f"linux.namespaces[{index}]"
        if namespace.type not in NAMESPACE_TYPES:
            raise InvalidSpec(f"{field}.type", f"unknown namespace {namespace.type!r}")
        if namespace.type in seen:
            raise InvalidSpec(field, f"a second {namespace.type} namespace")
        seen.add(namespace.type)


def to_json_types(part: msgspec.Struct) -> Any:
    """A part of the spec as dicts and lists under the specification's keys, without what is not given."""
    return msgspec.json.decode(msgspec.json.encode(part))
