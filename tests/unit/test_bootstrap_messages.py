"""The command line, the options and the bytes of `start`, `delete` and -info, compared with real protobuf."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.api import any_pb2
from shim.oci import grouping
from shim.task import delete, flags, info, options, wire
from shim.task.api import options_pb2, task_pb2


def test_go_style_flags() -> None:
    """-x v, -x=v, --x v and switches, in front of the action."""
    found = flags.parse(
        [
            "-namespace",
            "k8s.io",
            "--address=/run/c.sock",
            "-publish-binary",
            "/usr/bin/containerd",
            "-id",
            "a",
            "-debug",
            "-bundle=/b",
            "delete",
        ]
    )
    assert (found.namespace, found.address, found.publish_binary) == (
        "k8s.io",
        "/run/c.sock",
        "/usr/bin/containerd",
    )
    assert (found.id, found.bundle, found.debug, found.action) == ("a", "/b", True, "delete")


@pytest.mark.parametrize(("words", "debug"), [(["-debug=false"], False), (["-debug=true"], True), ([], False)])
def test_switches_take_a_value_after_equals(words: list[str], debug: bool) -> None:
    """As in Go: -debug=false."""
    assert flags.parse([*words, "start"]).debug is debug


def test_an_empty_value_is_a_value() -> None:
    """CRI-O calls with -address ""."""
    found = flags.parse(["-address", "", "-id", "x", "start"])
    assert (found.address, found.id, found.action) == ("", "x", "start")


@pytest.mark.parametrize("words", [["-nope", "start"], ["-id"]])
def test_bad_flags_are_refused(words: list[str]) -> None:
    """Unknown flags and missing values."""
    with pytest.raises(flags.UsageError):
        flags.parse(words)


def test_delete_response_is_containerds() -> None:
    """The hand-made bytes decode as DeleteResponse, far beyond 32 bits."""
    reply = task_pb2.DeleteResponse.FromString(delete.response(70000, 137, 1_763_900_000_123_456_789))
    assert (reply.pid, reply.exit_status) == (70000, 137)
    assert (reply.exited_at.seconds, reply.exited_at.nanos) == (1_763_900_000, 123_456_789)


def test_runtime_info_has_features() -> None:
    """RuntimeInfo: name, version and an Any with the OCI features as JSON."""
    message = wire.fields(info.runtime_info("1.2.3"))
    assert wire.text(message, 1) == "io.containerd.hako.v2"
    envelope = any_pb2.Any.FromString(message[4][0])  # type: ignore[arg-type]
    assert envelope.type_url.endswith("features/Features")
    features = json.loads(envelope.value)
    assert features["linux"]["seccomp"]["enabled"] and features["ociVersionMax"] == "1.3.0"


def runc_options(**fields: str) -> bytes:
    """An Any with runc's options."""
    value = options_pb2.RuncOptions(**fields).SerializeToString()  # type: ignore[arg-type]
    return any_pb2.Any(type_url="containerd.runc.v1.Options", value=value).SerializeToString()


def test_options_from_containerd_2_2() -> None:
    """A bare Any on stdin."""
    assert options.parse_stdin(runc_options(shim_cgroup="/a"), "c1", "ns").shim_cgroup == "/a"
    config = options_pb2.RuntimeOptions(config_path="/etc/x.toml").SerializeToString()
    data = any_pb2.Any(type_url="runtimeoptions.v1.Options", value=config).SerializeToString()
    assert options.parse_stdin(data, "c1", "ns").config_path == "/etc/x.toml"


def test_options_from_containerd_2_3() -> None:
    """BootstrapParams carry the Any in an extension."""
    extension = wire.blob(8, wire.blob(1, runc_options(shim_cgroup="/b")))
    params = wire.blob(1, "c1") + wire.blob(2, "ns") + wire.integer(3, -4) + wire.blob(4, "2.3.0") + extension
    assert options.parse_stdin(params, "c1", "ns").shim_cgroup == "/b"


@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"garbage", b"\x0a\x03abc"])
def test_what_is_not_understood_is_no_error(data: bytes) -> None:
    """Docker sends runc's options to every runtime, others send their own."""
    found = options.parse_stdin(data, "c1", "ns")
    assert (found.config_path, found.shim_cgroup) == ("", "")


def write_annotations(bundle: Path, annotations: dict[str, str]) -> dict[str, str]:
    """A config.json with annotations, read back."""
    (bundle / "config.json").write_text(json.dumps({"annotations": annotations}))
    return grouping.read_annotations(str(bundle))


@pytest.mark.parametrize(
    ("annotations", "sandbox", "role"),
    [
        ({}, "own", grouping.SINGLE),
        (
            {"io.kubernetes.cri.sandbox-id": "p", "io.kubernetes.cri.container-type": "container"},
            "p",
            "container",
        ),
        (
            {"io.kubernetes.cri-o.SandboxID": "q", "io.kubernetes.cri-o.ContainerType": "sandbox"},
            "q",
            "sandbox",
        ),
        ({"io.containerd.runc.v2.group": "g", "io.kubernetes.cri.sandbox-id": "p"}, "g", grouping.SINGLE),
    ],
)
def test_grouping(tmp_path: Path, annotations: dict[str, str], sandbox: str, role: str) -> None:
    """The pod is found by the annotations of containerd, CRI-O or an explicit group."""
    found = write_annotations(tmp_path, annotations)
    assert grouping.sandbox_of(found, "own") == sandbox
    assert grouping.role_of(found) == role


def test_a_bundle_without_config_has_no_annotations(tmp_path: Path) -> None:
    """containerd's sandbox API makes such bundles; `delete` meets removed ones."""
    assert grouping.read_annotations(str(tmp_path)) == {}
