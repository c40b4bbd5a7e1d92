"""Kata's field numbers on the wire: golden bytes from the published numbers, light classes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.api import (
    agent_pb2,
    any_pb2,
    csi_pb2,
    empty_pb2,
    generate,
    health_pb2,
    oci_pb2,
    timestamp_pb2,
    types_pb2,
)

ROOT = Path(__file__).resolve().parents[2]

VARINT, BYTES = 0, 2


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3 | VARINT) + varint(value & (1 << 64) - 1)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | BYTES) + varint(len(data)) + data


def fields(*pairs: tuple[int, int | str | bytes]) -> bytes:
    return b"".join(field(number, value) for number, value in pairs)


GOLDEN: list[tuple[Any, bytes]] = [
    (agent_pb2.StartContainerRequest(container_id="c1"), b"\x0a\x02c1"),
    (agent_pb2.RemoveContainerRequest(container_id="c", timeout=300), b"\x0a\x01c\x10\xac\x02"),
    (agent_pb2.SignalProcessRequest(container_id="c", exec_id="e", signal=9), b"\x0a\x01c\x12\x01e\x18\x09"),
    (agent_pb2.WaitProcessResponse(status=-1), b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
    (
        agent_pb2.WriteStreamRequest(container_id="c", exec_id="e", data=b"\0"),
        b"\x0a\x01c\x12\x01e\x1a\x01\0",
    ),
    (agent_pb2.ReadStreamResponse(data=b"out"), b"\x0a\x03out"),
    (agent_pb2.ReseedRandomDevRequest(data=b"r"), b"\x12\x01r"),
    (agent_pb2.FSGroup(group_id=5, group_change_policy=types_pb2.OnRootMismatch), b"\x10\x05\x18\x01"),
    (agent_pb2.OOMEvent(container_id="c"), b"\x0a\x01c"),
    (health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING), b"\x08\x01"),
    (
        csi_pb2.VolumeUsage(available=1, total=2, used=3, unit=csi_pb2.VolumeUsage.INODES),
        b"\x08\x01\x10\x02\x18\x03\x20\x02",
    ),
    (empty_pb2.Empty(), b""),
    (timestamp_pb2.Timestamp(seconds=1, nanos=2), b"\x08\x01\x10\x02"),
    (any_pb2.Any(type_url="u", value=b"v"), b"\x0a\x01u\x12\x01v"),
    (
        agent_pb2.CreateContainerRequest(
            container_id="c",
            exec_id="e",
            string_user=agent_pb2.StringUser(uid="0"),
            devices=[
                agent_pb2.Device(id="02", type="blk", vm_path="/dev/vda", container_path="/x", options=["o"])
            ],
            storages=[
                agent_pb2.Storage(
                    driver="blk", source="s", fstype="ext4", options=["ro"], mount_point="/m", shared=True
                )
            ],
            OCI=oci_pb2.Spec(Version="1.2.0"),
            sandbox_pidns=True,
            shared_mounts=[
                agent_pb2.SharedMount(name="n", src_ctr="a", src_path="/a", dst_ctr="b", dst_path="/b")
            ],
            stdin_port=1,
            stdout_port=2,
            stderr_port=3,
        ),
        fields(
            (1, "c"),
            (2, "e"),
            (3, field(1, "0")),
            (4, fields((1, "02"), (2, "blk"), (3, "/dev/vda"), (4, "/x"), (5, "o"))),
            (5, fields((1, "blk"), (3, "s"), (4, "ext4"), (5, "ro"), (6, "/m"), (8, 1))),
            (6, field(1, "1.2.0")),
            (7, 1),
            (8, fields((1, "n"), (2, "a"), (3, "/a"), (4, "b"), (5, "/b"))),
            (9, 1),
            (10, 2),
            (11, 3),
        ),
    ),
    (
        agent_pb2.ExecProcessRequest(
            container_id="c",
            exec_id="e",
            process=oci_pb2.Process(Args=["sh"]),
            stdin_port=1,
            stdout_port=2,
            stderr_port=3,
        ),
        fields((1, "c"), (2, "e"), (4, field(4, "sh")), (5, 1), (6, 2), (7, 3)),
    ),
    (
        oci_pb2.Process(
            Terminal=True,
            ConsoleSize=oci_pb2.Box(Height=24, Width=80),
            User=oci_pb2.User(UID=1, GID=2, AdditionalGids=[3], Username="u"),
            Args=["a"],
            Env=["K=V"],
            Cwd="/",
            Capabilities=oci_pb2.LinuxCapabilities(
                Bounding=["B"], Effective=["E"], Inheritable=["I"], Permitted=["P"], Ambient=["A"]
            ),
            Rlimits=[oci_pb2.POSIXRlimit(Type="T", Hard=2, Soft=1)],
            NoNewPrivileges=True,
            ApparmorProfile="p",
            OOMScoreAdj=-1,
            SelinuxLabel="l",
        ),
        fields(
            (1, 1),
            (2, fields((1, 24), (2, 80))),
            (3, fields((1, 1), (2, 2), (3, b"\x03"), (4, "u"))),
            (4, "a"),
            (5, "K=V"),
            (6, "/"),
            (7, fields((1, "B"), (2, "E"), (3, "I"), (4, "P"), (5, "A"))),
            (8, fields((1, "T"), (2, 2), (3, 1))),
            (9, 1),
            (10, "p"),
            (11, -1),
            (12, "l"),
        ),
    ),
    (
        oci_pb2.LinuxResources(
            Devices=[oci_pb2.LinuxDeviceCgroup(Allow=True, Type="c", Major=1, Minor=3, Access="rwm")],
            Memory=oci_pb2.LinuxMemory(
                Limit=1, Reservation=2, Swap=3, Kernel=4, KernelTCP=5, Swappiness=6, DisableOOMKiller=True
            ),
            CPU=oci_pb2.LinuxCPU(
                Shares=1, Quota=2, Period=3, RealtimeRuntime=4, RealtimePeriod=5, Cpus="0", Mems="1"
            ),
            Pids=oci_pb2.LinuxPids(Limit=7),
            BlockIO=oci_pb2.LinuxBlockIO(Weight=10),
            HugepageLimits=[oci_pb2.LinuxHugepageLimit(Pagesize="2MB", Limit=4)],
            Network=oci_pb2.LinuxNetwork(ClassID=1),
        ),
        fields(
            (1, fields((1, 1), (2, "c"), (3, 1), (4, 3), (5, "rwm"))),
            (2, fields((1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 1))),
            (3, fields((1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, "0"), (7, "1"))),
            (4, field(1, 7)),
            (5, field(1, 10)),
            (6, fields((1, "2MB"), (2, 4))),
            (7, field(1, 1)),
        ),
    ),
    (
        oci_pb2.LinuxSyscall(
            Names=["open"],
            Action="A",
            errnoret=1,
            Args=[oci_pb2.LinuxSeccompArg(Index=1, Value=2, ValueTwo=3, Op="O")],
        ),
        fields((1, "open"), (2, "A"), (3, 1), (4, fields((1, 1), (2, 2), (3, 3), (4, "O")))),
    ),
    (
        types_pb2.Interface(
            device="eth0",
            name="eth0",
            IPAddresses=[types_pb2.IPAddress(family=types_pb2.v6, address="::1", mask="64")],
            mtu=1500,
            hwAddr="02::",
            devicePath="02",
            type="veth",
            raw_flags=128,
        ),
        fields(
            (1, "eth0"),
            (2, "eth0"),
            (3, fields((1, 1), (2, "::1"), (3, "64"))),
            (4, 1500),
            (5, "02::"),
            (6, "02"),
            (7, "veth"),
            (8, 128),
        ),
    ),
]


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_serialized_bytes_are_those_of_the_published_field_numbers(message: Any, golden: bytes) -> None:
    """A message serializes to bytes written by hand from Kata's numbers, and parses back from them."""
    golden_message = type(message).FromString(golden)
    assert golden_message == message
    assert golden_message.SerializeToString(deterministic=True) == golden


NUMBERS = {
    agent_pb2.CreateSandboxRequest: "hostname dns storages sandbox_pidns sandbox_id guest_hook_path "
    "kernel_modules",
    agent_pb2.CopyFileRequest: "path file_size file_mode dir_mode uid gid offset data",
    agent_pb2.CgroupStats: "cpu_stats memory_stats pids_stats blkio_stats hugetlb_stats",
    agent_pb2.AgentDetails: "version init_daemon device_handlers storage_handlers supports_seccomp "
    "extra_features",
    agent_pb2.NetworkStats: "name rx_bytes rx_packets rx_errors rx_dropped tx_bytes tx_packets tx_errors "
    "tx_dropped",
    oci_pb2.Spec: "Version Process Root Hostname Mounts Hooks Annotations Linux Solaris Windows",
    oci_pb2.Linux: "UIDMappings GIDMappings Sysctl Resources CgroupsPath Namespaces Devices Seccomp "
    "RootfsPropagation MaskedPaths ReadonlyPaths MountLabel IntelRdt",
    oci_pb2.Hooks: "Prestart Poststart Poststop CreateRuntime CreateContainer StartContainer",
    oci_pb2.LinuxBlockIO: "Weight LeafWeight WeightDevice ThrottleReadBpsDevice ThrottleWriteBpsDevice "
    "ThrottleReadIOPSDevice ThrottleWriteIOPSDevice",
    types_pb2.Route: "dest gateway device source scope family flags mtu",
    types_pb2.ARPNeighbor: "toIPAddress device lladdr state flags",
}


@pytest.mark.parametrize(
    ("message", "names"), NUMBERS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_kata_fields_are_numbered_in_order(message: Any, names: str) -> None:
    """The fields below 1000 are Kata's, with Kata's numbers, no more and no fewer."""
    kata = [f.name for f in sorted(message.DESCRIPTOR.fields, key=lambda f: int(f.number)) if f.number < 1000]
    assert kata == names.split()
    assert [message.DESCRIPTOR.fields_by_name[name].number for name in kata] == list(range(1, len(kata) + 1))


def test_agent_service_has_the_42_methods() -> None:
    """Both services are described with all their methods."""
    agent = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    assert agent.full_name == "grpc.AgentService"
    assert len(agent.methods) == 42
    assert health_pb2.DESCRIPTOR.services_by_name["Health"].full_name == "grpc.Health"


def test_field_of_a_newer_peer_is_skipped() -> None:
    """Unknown fields are skipped, not refused."""
    assert agent_pb2.OOMEvent.FromString(b"\x0a\x01c\xba\x3e\x01x").container_id == "c"


def test_presence_of_zero_reaches_the_guest() -> None:
    """A limit of 0 differs from no limit (proto3 optional), also on the wire."""
    memory = oci_pb2.LinuxMemory.FromString(oci_pb2.LinuxMemory(Swappiness=0).SerializeToString())
    assert memory.HasField("Swappiness")
    assert not memory.HasField("Limit")


def test_generated_files_are_current() -> None:
    """agent/api/generate.py makes exactly the committed files from the committed .proto files."""
    for path, text in generate.generate(Path("agent/api")).items():
        assert (ROOT / path).read_text() == text, f"{path} is stale: python -m agent.api.generate"


def test_light_form_imports_no_heavy_module() -> None:
    """Loading all messages does not pull in typing, datetime, threading or protobuf's descriptor pool."""
    code = """
import sys
sys.path[:0] = sys.argv[1:]
from agent.api import agent_pb2, health_pb2, any_pb2, timestamp_pb2
heavy = {"collections", "typing", "datetime", "threading", "re", "google.protobuf.descriptor_pool",
         "google.protobuf.descriptor", "google.protobuf.internal.well_known_types"}
print(sorted(heavy & set(sys.modules)))
"""
    site = str(Path(__import__("google.protobuf").__path__[0]).parent)
    argv = ["/usr/bin/python3", "-IS", "-c", code, str(ROOT), site]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_real_modules_can_still_be_imported() -> None:
    """Our stand-ins are gone after loading: collections and protobuf's own modules work beside ours."""
    code = """
import sys
sys.path[:0] = sys.argv[1:]
from agent.api import agent_pb2, timestamp_pb2
from google._upb._message import UnknownFieldSet
[unknown] = UnknownFieldSet(agent_pb2.OOMEvent.FromString(b"\\xba\\x3e\\x01x"))
assert (unknown.field_number, unknown.data) == (999, b"x")
import collections.abc
collections.OrderedDict, collections.abc.Mapping
from google.protobuf.internal import well_known_types
from google.protobuf import timestamp_pb2 as theirs
theirs.Timestamp(seconds=1)
print(well_known_types.Any)
"""
    site = str(Path(__import__("google.protobuf").__path__[0]).parent)
    argv = ["/usr/bin/python3", "-IS", "-c", code, str(ROOT), site]
    run = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "well_known_types.Any" in run.stdout
