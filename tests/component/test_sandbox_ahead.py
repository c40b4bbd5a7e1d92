"""What is begun before the first Create: taken over by it, or gone; real files, network namespaces and stubs, a fake guest."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.ttrpc.status import RpcError
from shim import config as configuration
from shim import paths
from shim.errors import BootError, HakoError
from shim.oci import spec as oci
from shim.sandbox import ahead, launch
from shim.sandbox.ahead import Ahead
from shim.sandbox.builder import HostFactory
from shim.sandbox.hostside import Request
from shim.sandbox.rootfs import RootfsMount
from shim.stdio.fifo import Names
from tests.framework.containerd import short_directory
from tests.framework.taskpod import NAMESPACE, Pod, write_bundle

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and cgroups")


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a pod, whose state is below it."""
    with short_directory() as directory:
        monkeypatch.setenv("HAKO_STATE_DIR", str(directory / "state"))
        yield directory


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Launching begins with nothing but a word here when it is taken back."""
    words: list[str] = []

    def begin(self: Any, _marks: object) -> Any:
        self._undo.callback(words.append, "ended")

    monkeypatch.setattr(launch.Launching, "launch", begin)
    return words


def begin(directory: Path, **changes: Any) -> Ahead | None:
    """As the pod process does."""
    bundle = write_bundle(directory / "b/pod1", ["exit", "0"], **changes)
    return ahead.begin(configuration.Config(), str(bundle), "pod1", NAMESPACE, lambda _level, _message: None)


def states(directory: Path) -> list[Path]:
    """State directories of pods."""
    return [Path(path) for path in glob.glob(f"{directory}/state/pods/*/*")]  # pathlib's raises where a directory goes


def test_nothing_is_left_of_what_nobody_asked_for(directory: Path, ended: list[str]) -> None:
    """No Create came: processes, namespace and state are gone."""
    begun = begin(directory)
    assert begun is not None and states(directory) and os.path.exists(begun.netns)
    netns = begun.netns
    HostFactory(lambda _level, _message: None, None, begun).close()
    assert ended == ["ended"] and not states(directory) and not os.path.exists(netns)


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "other"}},
        {"hooks": {"prestart": [{"path": "/bin/true"}]}},
        {"annotations": {"io.hako.config.hypervisor.path": "/bin/false"}},
        {"linux": {"namespaces": []}},
    ],
    ids=["a member of a pod", "hooks", "a refused annotation", "the host's network"],
)
def test_what_is_left_to_create(directory: Path, ended: list[str], changes: dict[str, Any]) -> None:
    """What is not certain, or must be refused in words."""
    assert begin(directory, **changes) is None
    assert not ended and not states(directory)


def test_a_launch_that_fails_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create will say why."""

    def fail(self: Any, _marks: object) -> Any:
        raise HakoError("no such program")

    monkeypatch.setattr(launch.Launching, "launch", fail)
    assert begin(directory) is None
    assert not states(directory)


def test_create_takes_it_over(directory: Path, ended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """State and network namespace are the ones that were begun, and go with the last container; a later pod begins anew."""
    begun = begin(directory)
    assert begun is not None
    offered = [begun]
    pod = Pod(directory)
    monkeypatch.setattr(pod.factory, "take_ahead", lambda _request: offered.pop() if offered else None)
    pod.run("pod1", "exit", "0")
    assert pod.sandbox.store is begun.store and pod.sandbox.netns == begun.netns
    pod.call("Wait", id="pod1")
    pod.call("Delete", id="pod1")
    pod.sandbox.stop()
    assert ended == ["ended"] and not states(directory)
    pod.run("pod1", "exit", "0")
    assert pod.sandbox.store is not begun.store
    pod.close()


def test_a_create_that_fails_ends_it(directory: Path, ended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it fails before the machine is asked for."""
    begun = begin(directory)
    pod = Pod(directory)
    monkeypatch.setattr(pod.factory, "take_ahead", lambda _request: begun)
    pod.factory.fail = BootError("boot", "no")
    with pytest.raises(RpcError):
        pod.create("pod1", "exit", "0")
    assert ended == ["ended"] and not states(directory)
    pod.close()


def _request(bundle: Path, *rootfs: RootfsMount) -> Request:
    return Request("pod1", str(bundle), oci.load(str(bundle)), Names(), rootfs)


OVERLAY, BIND = RootfsMount("overlay", "overlay", ()), RootfsMount("bind", "/srv", ("rbind",))


def test_a_create_with_another_bundle_begins_anew(directory: Path, ended: list[str]) -> None:
    """What was read is not what is asked for."""
    factory = HostFactory(lambda _level, _message: None, None, begin(directory))
    assert factory.take_ahead(_request(write_bundle(directory / "b/other", ["exit", "0"]), OVERLAY)) is None
    assert ended == ["ended"] and not states(directory)
    assert not os.path.exists(paths.sandbox_dir("pod1", NAMESPACE))


@pytest.mark.parametrize("rootfs", [(), (BIND,)], ids=["none", "a bind"])
def test_a_create_with_files_of_others_begins_anew(directory: Path, ended: list[str], rootfs: tuple[RootfsMount, ...]) -> None:
    """The machine was begun for files that only its guest would write."""
    begun = begin(directory)
    assert begun is not None and begun.plan.own_files
    factory = HostFactory(lambda _level, _message: None, None, begun)
    assert factory.take_ahead(_request(directory / "b/pod1", *rootfs)) is None
    assert ended == ["ended"] and not states(directory)


@pytest.mark.parametrize(
    ("changes", "rootfs"),
    [({}, (OVERLAY,)), ({"annotations": {"io.containerd.runc.v2.group": "pod1"}}, ())],
    ids=["its own files", "a pod that others may join"],
)
def test_a_create_as_expected_takes_it(
    directory: Path, ended: list[str], changes: dict[str, Any], rootfs: tuple[RootfsMount, ...]
) -> None:
    """What the guest may keep was decided rightly."""
    begun = begin(directory, **changes)
    assert begun is not None
    factory = HostFactory(lambda _level, _message: None, None, begun)
    assert factory.take_ahead(_request(directory / "b/pod1", *rootfs)) is begun
    begun.close()
    assert ended == ["ended"]
