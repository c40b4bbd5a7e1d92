"""The host's config.json as the spec that the agent carries out. Pure.

Owns: every decision about what of the host's spec makes sense in the guest. Must not know: how a mount's
source got its guest path (it is told), nor the agent's RPCs. Called by sandbox/container.py.

    root, bind mounts   the guest's path of what was put into the share
    namespaces          network dropped (the VM is it); ipc and uts of a pod are the sandbox's pinned ones; a
                        pid namespace of another container becomes "container:ID"; paths of the others are
                        dropped, a new one is made, which for user namespaces has the same mappings
    cgroupsPath         /hako/ID: the guest is one pod's, the engine's hierarchy has no meaning there
    hooks               only startContainer, with the container's own programs; the others ran on the host
    resources           all controllers, less what names host hardware: CPUs that the VM lacks, block devices
    seccomp, caps, rlimits, masked paths, sysctls, devices, user    as they are
    apparmor, selinux, intelRdt, netDevices   dropped: facilities of the host
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from agent.api import jsonmap, oci_pb2
from shim.errors import InvalidSpec
from shim.oci import spec as oci
from shim.oci.mounts import KEEP, SHM, MountPlan

if TYPE_CHECKING:
    from google.protobuf.message import Message

SANDBOX_IPC = "/run/sandbox-ns/ipc"
SANDBOX_UTS = "/run/sandbox-ns/uts"
SANDBOX_SHM = "/run/kata-containers/sandbox/shm"
CGROUP_PARENT = "/hako"


class GuestPlaces(NamedTuple):
    """What the translation is told. Paths are the guest's.

    `rootfs`: the container's root. `sources`: index of a mount -> path of its source in the share.
    `in_pod`: joins the sandbox's ipc and uts namespaces. `vcpus`: CPUs 0 to vcpus - 1 exist.
    `container_of_pid`: host pid in a /proc/PID/ns/pid path -> id of the container whose pid namespace is
    meant, None if it is none of ours.
    """

    container_id: str
    rootfs: str
    sources: Mapping[int, str]
    in_pod: bool
    vcpus: int
    container_of_pid: Callable[[int], str | None]


def translate(spec: oci.Spec, mounts: list[MountPlan], places: GuestPlaces) -> oci_pb2.Spec:
    """The guest's spec. Raises InvalidSpec for what cannot be carried over."""
    assert spec.linux is not None and spec.root is not None  # spec.check()
    guest = msgspec.structs.replace(
        spec,
        root=oci.Root(path=places.rootfs, readonly=spec.root.readonly),
        process=process(spec.process) if spec.process else None,
        mounts=tuple(_mount(spec, plan, places) for plan in mounts),
        hooks=_hooks(spec.hooks),
        linux=_linux(spec.linux, places),
    )
    message = oci_pb2.Spec()
    _fill(message, guest)
    return message


def translate_process(part: oci.Process) -> oci_pb2.Process:
    """The process of an exec for the guest."""
    message = oci_pb2.Process()
    _fill(message, process(part))
    return message


def translate_resources(part: oci.Resources, vcpus: int) -> oci_pb2.LinuxResources:
    """The limits of an update for the guest."""
    message = oci_pb2.LinuxResources()
    _fill(message, resources(part, vcpus))
    return message


def process(part: oci.Process) -> oci.Process:
    """A process without the host's mandatory access control, which the guest does not have."""
    return msgspec.structs.replace(part, apparmor_profile=None, selinux_label=None)


def resources(part: oci.Resources, vcpus: int) -> oci.Resources:
    """Limits without what names hardware of the host."""
    return msgspec.structs.replace(part, cpu=_cpu(part.cpu, vcpus), block_io=_block_io(part.block_io), network=None, rdma=None)


def _fill(message: Message, part: msgspec.Struct) -> None:
    try:
        jsonmap.fill(message, oci.to_json_types(part))
    except jsonmap.FieldError as exc:
        raise InvalidSpec(exc.field, exc.reason) from exc


def _mount(spec: oci.Spec, plan: MountPlan, places: GuestPlaces) -> oci.Mount:
    mount = (spec.mounts or ())[plan.at]
    if plan.fate == KEEP:
        return _placed(mount, places.sources[plan.at]) if plan.at in places.sources else mount
    source = SANDBOX_SHM if plan.fate == SHM else places.sources[plan.at]
    options = [option for option in mount.options or () if option not in ("bind", "rbind")]
    return msgspec.structs.replace(mount, type="bind", source=source, options=("rbind", *options))


def _placed(mount: oci.Mount, source: str) -> oci.Mount:
    """A file system that the guest has mounted at `source`, with all its options."""
    options = ("rbind", *(option for option in mount.options or () if option in ("ro", "rw")))
    return msgspec.structs.replace(mount, type="bind", source=source, options=options)


def _hooks(hooks: oci.Hooks | None) -> oci.Hooks | None:
    if hooks is None or not hooks.start_container:
        return None
    return oci.Hooks(start_container=hooks.start_container)


def _linux(linux: oci.Linux, places: GuestPlaces) -> oci.Linux:
    return msgspec.structs.replace(
        linux,
        cgroups_path=f"{CGROUP_PARENT}/{places.container_id}",
        namespaces=_namespaces(linux.namespaces or (), places),
        resources=resources(linux.resources, places.vcpus) if linux.resources else None,
        mount_label=None,
        intel_rdt=None,
        net_devices=None,
    )


def _namespaces(host: tuple[oci.Namespace, ...], places: GuestPlaces) -> tuple[oci.Namespace, ...]:
    guest = [_namespace(entry, places) for entry in host if entry.type not in ("network", "ipc", "uts")]
    for kind, path in (("ipc", SANDBOX_IPC), ("uts", SANDBOX_UTS)):
        asked = next((entry for entry in host if entry.type == kind), None)
        joined = places.in_pod or asked is None or bool(asked.path)
        guest.append(oci.Namespace(kind, path if joined else None))
    return tuple(guest)


def _namespace(entry: oci.Namespace, places: GuestPlaces) -> oci.Namespace:
    if entry.type != "pid" or not entry.path:
        return oci.Namespace(entry.type)
    pid = _pid_in(entry.path)
    container = places.container_of_pid(pid) if pid else None
    if container is None:
        raise InvalidSpec("linux.namespaces", f"{entry.path} is no pid namespace of a container in this pod")
    return oci.Namespace("pid", f"container:{container}")


def _pid_in(path: str) -> int | None:
    """PID in /proc/PID/ns/pid."""
    parts = path.split("/")
    if len(parts) == 5 and parts[1] == "proc" and parts[3:] == ["ns", "pid"] and parts[2].isdigit():
        return int(parts[2])
    return None


def _cpu(cpu: oci.CPU | None, vcpus: int) -> oci.CPU | None:
    if cpu is None:
        return None
    keep = cpu.cpus if cpu.cpus and highest_cpu(cpu.cpus) < vcpus else None
    return msgspec.structs.replace(cpu, cpus=keep, mems=None)


def highest_cpu(cpus: str) -> int:
    """Largest number in a CPU list such as "0-2,7". Raises InvalidSpec if it is no such list."""
    try:
        return max(int(part.rpartition("-")[2]) for part in cpus.strip().split(","))
    except ValueError:
        raise InvalidSpec("linux.resources.cpu.cpus", f"{cpus!r} is not a list of CPUs") from None


def _block_io(limits: oci.BlockIO | None) -> oci.BlockIO | None:
    if limits is None:
        return None
    return oci.BlockIO(weight=limits.weight, leaf_weight=limits.leaf_weight)
