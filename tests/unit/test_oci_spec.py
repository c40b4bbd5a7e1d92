"""config.json: lenient to unknown keys, strict in types, errors with the path of the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shim.errors import InvalidSpec
from shim.oci import spec

GOOD: dict[str, Any] = {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "linux": {}}


def parse(**changes: Any) -> spec.Spec:
    """A small spec with changes at the top."""
    return spec.parse(json.dumps({**GOOD, **changes}))


def test_unknown_keys_are_ignored_everywhere() -> None:
    """The specification demands it: extensions and newer versions must not break us."""
    parsed = parse(new=1, root={"path": "r", "new": []}, linux={"resources": {"memory": {"new": {}}}})
    assert parsed.root is not None and parsed.root.path == "r"


def test_null_means_absent() -> None:
    """Go's encoder writes null for empty slices and pointers."""
    assert parse(mounts=None, hooks=None, linux={"namespaces": None}).mounts is None


@pytest.mark.parametrize("version", ["1.0.0", "1.0.2-dev", "1.1.0", "1.2.1", "1.3.0", "1.9.0"])
def test_newer_minor_versions_are_accepted(version: str) -> None:
    """CRI-O 1.34 writes 1.2.1, containerd 2.2 writes 1.3.0."""
    assert parse(ociVersion=version).oci_version == version


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"ociVersion": "2.0.0"}, "ociVersion"),
        ({"ociVersion": 1}, "ociVersion"),
        ({"root": None}, "root.path"),
        ({"root": {"path": 5}}, "root.path"),
        ({"linux": None}, "linux"),
        ({"mounts": [{"destination": "/a"}, {"destination": ""}]}, "mounts[1].destination"),
        ({"mounts": [{"source": "/a"}]}, "mounts[0]"),
        ({"linux": {"namespaces": [{"type": "net"}]}}, "linux.namespaces[0].type"),
        ({"linux": {"namespaces": [{"type": "pid"}, {"type": "pid"}]}}, "linux.namespaces[1]"),
        ({"linux": {"resources": {"pids": {"limit": "10"}}}}, "linux.resources.pids.limit"),
        ({"process": {"user": {"uid": -1}, "args": ["x"]}}, "process.user.uid"),
        ({"process": {"user": {"uid": 1 << 32}, "args": ["x"]}}, "process.user.uid"),
    ],
)
def test_a_mistake_names_its_field(changes: dict[str, Any], field: str) -> None:
    """The path of the field as in JSON, and a reason."""
    with pytest.raises(InvalidSpec) as caught:
        parse(**changes)
    assert caught.value.field == field and caught.value.reason
    assert field in str(caught.value)


def test_what_is_not_json_is_refused() -> None:
    """Not a traceback, an error with the file's name."""
    with pytest.raises(InvalidSpec, match=r"config\.json.*not JSON"):
        spec.parse(b"{")


def test_a_bundle_without_config_is_refused(tmp_path: Path) -> None:
    """containerd's sandbox API makes such bundles."""
    with pytest.raises(InvalidSpec, match=str(tmp_path)):
        spec.load(str(tmp_path))


def test_a_container_needs_a_process_with_arguments() -> None:
    """OCI allows a spec without a process; creating a container from it is not possible."""
    for changes, field in (
        ({}, "process"),
        ({"process": {"args": [], "cwd": "/"}}, "process.args"),
        ({"process": {"args": ["a"], "cwd": "b"}}, "process.cwd"),
    ):
        with pytest.raises(InvalidSpec) as caught:
            spec.check_runnable(parse(**changes))
        assert caught.value.field == field
