"""The host's config.json as the guest's spec: golden files, and each decision by itself.

HAKO_UPDATE_GOLDEN=1 writes the golden files again; read the difference before committing it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from shim.errors import InvalidSpec
from shim.oci import mounts, spec, translate

GOLDEN = Path(__file__).resolve().parents[1] / "golden/guest-spec"
PAUSE_PID = 4242


def minimal(**changes: Any) -> spec.Spec:
    """A small valid spec with `changes` in its linux part."""
    linux = {"namespaces": [{"type": "network"}, {"type": "pid"}], **changes}
    return spec.parse(json.dumps({"ociVersion": "1.2.0", "root": {"path": "r"}, "linux": linux}))


def places(**changes: Any) -> translate.GuestPlaces:
    """What the sandbox would tell of container c1 in pod f00d."""
    given: dict[str, Any] = {
        "container_id": "c1",
        "rootfs": "/run/kata-containers/shared/containers/c1/rootfs",
        "sources": {},
        "in_pod": False,
        "vcpus": 1,
        "container_of_pid": lambda pid: "f00d" if pid == PAUSE_PID else None,
    }
    return translate.GuestPlaces(**{**given, **changes})


def translated(host: spec.Spec, **changes: Any) -> dict[str, Any]:
    """The guest's spec under the keys of OCI."""
    plans = mounts.plan(host, "/bundle")
    sources = {plan.at: f"/shared/{plan.at}" for plan in plans if plan.fate == mounts.SHARE}
    message = translate.translate(host, plans, places(sources=sources, **changes))
    result: dict[str, Any] = json_format.MessageToDict(message)
    return result


@pytest.mark.parametrize(
    ("name", "in_pod"),
    [("ctr-run", False), ("cri-sandbox", True), ("cri-container", True), ("everything", False)],
)
def test_the_guest_spec_is_as_recorded(name: str, in_pod: bool) -> None:
    """Real specs of engines become exactly the recorded guest specs."""
    host = spec.parse((GOLDEN / f"{name}.config.json").read_bytes())
    text = json.dumps(translated(host, in_pod=in_pod), indent=1, sort_keys=True) + "\n"
    golden = GOLDEN / f"{name}.guest.json"
    if os.environ.get("HAKO_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_mounts_of_the_host_are_shared_and_the_guests_are_kept() -> None:
    """Binds go through the share with their mode; /dev, /proc and /sys are the guest's; /dev/shm is the
    pod's.
    """
    host = spec.parse((GOLDEN / "cri-container.config.json").read_bytes())
    plans = {(host.mounts or ())[plan.at].destination: plan for plan in mounts.plan(host, "/bundle")}
    assert {path: plan.fate for path, plan in plans.items()} == {
        "/proc": "keep", "/dev": "keep", "/dev/pts": "keep", "/dev/mqueue": "keep", "/sys": "keep",
        "/dev/shm": "shm", "/etc/resolv.conf": "share", "/etc/hosts": "share",
        "/dev/termination-log": "share", "/var/run/secrets/kubernetes.io/serviceaccount": "share",
        "/host/dev": "keep", "/host/sys": "keep", "/relative": "share",
    }  # fmt: skip
    account = plans["/var/run/secrets/kubernetes.io/serviceaccount"]
    assert (account.readonly, account.propagation) == (True, "slave")
    assert (plans["/etc/hosts"].readonly, plans["/etc/hosts"].propagation) == (False, "private")
    assert plans["/relative"].source == "/bundle/data"


def test_a_pod_shares_ipc_and_uts_and_a_single_container_has_its_own() -> None:
    """In a pod the paths are the sandbox's pinned namespaces, whatever the host's spec says."""
    joined = {"ipc": translate.SANDBOX_IPC, "uts": translate.SANDBOX_UTS}
    fresh = [{"type": "ipc"}, {"type": "uts"}]

    def paths(host: spec.Spec, **changes: Any) -> dict[str, str]:
        entries = translated(host, **changes)["linux"]["namespaces"]
        return {entry["type"]: entry.get("path", "") for entry in entries if entry["type"] in joined}

    assert paths(minimal(namespaces=fresh), in_pod=True) == joined
    assert paths(minimal(namespaces=fresh)) == {"ipc": "", "uts": ""}
    assert paths(minimal(namespaces=[])) == joined


def test_a_pid_namespace_by_path_names_the_container() -> None:
    """/proc/PID/ns/pid of a stub becomes container:ID; anything else is refused."""
    shared = minimal(namespaces=[{"type": "pid", "path": f"/proc/{PAUSE_PID}/ns/pid"}])
    assert {"type": "pid", "path": "container:f00d"} in translated(shared)["linux"]["namespaces"]
    for path in ("/proc/1/ns/pid", "/proc/x/ns/pid", "/run/pidns/1"):
        with pytest.raises(InvalidSpec, match="pid namespace"):
            translated(minimal(namespaces=[{"type": "pid", "path": path}]))


@pytest.mark.parametrize(("cpus", "vcpus", "kept"), [("0", 1, "0"), ("0-1", 1, None), ("0,3", 4, "0,3")])
def test_a_cpuset_is_kept_where_the_vm_has_the_cpus(cpus: str, vcpus: int, kept: str | None) -> None:
    """The host's CPU numbers mean nothing in a smaller VM."""
    limits = translated(minimal(resources={"cpu": {"cpus": cpus, "mems": "0"}}), vcpus=vcpus)
    assert limits["linux"]["resources"]["cpu"].get("cpus") == kept
    assert "mems" not in limits["linux"]["resources"]["cpu"]


def test_presence_of_zero_survives() -> None:
    """`"limit": 0` is not the same as no limit, nor oomScoreAdj 0 the same as none."""
    host = minimal(resources={"memory": {"swappiness": 0}, "pids": {"limit": 0}})
    message = translate.translate(host, [], places())
    assert message.Linux.Resources.Memory.HasField("Swappiness")
    assert message.Linux.Resources.Pids.HasField("Limit")
    assert not message.Linux.Resources.Memory.HasField("Limit")
