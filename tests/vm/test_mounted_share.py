"""Templates that are saved with the share mounted: each clone sees its own files, and nothing else.

They run with QEMU 8.2 or newer and the Rust virtiofsd (tests/framework/stack.py), in a cache without templates.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shim import config as configuration
from shim.oci import spec as oci
from shim.sandbox import spare, template
from shim.sandbox.placement import Wanted
from shim.share.tree import GUEST_ROOT as SHARED
from tests.framework import box, stack
from tests.framework.agentcalls import AgentCaller
from tests.framework.containerd import short_directory
from tests.framework.hako import Hako, cache_without_templates, installation

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test"),
]
PORTS = {"agent": 1024, "stdio": 1027}
SECONDS = 90.0  # for what is made in the background on a busy machine


@pytest.fixture
def hako(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Hako]:
    """A user of hako with that stack, and a template; parametrized: what else the configuration says."""
    with installation(getattr(request, "param", "")) as hako:
        stack.use(hako.directory)
        hako.environment["HAKO_CACHE_DIR"] = cache_without_templates(tmp_path)
        hako.run("factory", "init", check=True)
        yield hako
        hako.remove_everything()
        hako.run("factory", "destroy", check=True)


def _status(hako: Hako) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(hako.run("factory", "status", "--json", check=True).stdout)
    return found


def _said(hako: Hako, name: str, script: str) -> list[str]:
    return hako.run("exec", name, "sh", "-c", script, check=True).stdout.split()


def _volume(directory: Path, text: str) -> str:
    directory.mkdir()
    (directory / "mine").write_text(f"{text}\n")
    return f"{directory}:/volume"


class Clone(AgentCaller):
    """A restored VM that is no pod yet; all of them have the same names in their shares."""

    def __init__(self, vm: spare.Spare, rootfs: Path) -> None:
        super().__init__(rootfs)
        self.vm = vm
        self.client = self.connect()
        self.show(rootfs)
        self.create_sandbox(storages=[self.vm.files.sandbox_storage()])

    def show(self, rootfs: Path) -> None:
        """The root of the containers that follow."""
        self._rootfs = rootfs
        spec = oci.parse(json.dumps({"ociVersion": "1.2.0", "root": {"path": "rootfs"}, "linux": {}}))
        self._rootfs_in_guest = self.vm.files.place(Wanted("same", spec, (), str(self.rootfs()))).rootfs
        (rootfs / "mine").write_text(f"{rootfs.name}\n")

    def dial(self, service: str) -> socket.socket:
        """See AgentCaller."""
        return self.vm.vsock.connect(PORTS[service], SECONDS)

    def said(self, cid: str, script: str) -> list[str]:
        """What a container says that sees the guest's whole share in /all."""
        streams = self.streams("stdout")
        self.start(cid, script, streams, mounts=[*box.default_mounts(), box.bind(SHARED, "/all", "rbind")])
        return streams.read_all().decode().split()


@pytest.mark.parametrize("cache", ["auto", "always"])
def test_each_clone_sees_its_own_share(tmp_path: Path, cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once with the same names: contents, writes and the list of all that is shared are each one's own.

    Also where the guest may keep for ever what it has looked up.
    """
    with short_directory() as directory, ExitStack() as undo:
        monkeypatch.setenv("HAKO_STATE_DIR", str(directory))
        monkeypatch.setenv("HAKO_CACHE_DIR", cache_without_templates(tmp_path))
        config = configuration.parse(stack.tables())
        config = msgspec.structs.replace(config, share=msgspec.structs.replace(config.share, cache=cache))
        clones = []
        for who in ("one", "two"):
            vm = spare.make(config, lambda _level, message: print(message))
            undo.callback(vm.close)
            clones.append(Clone(vm, tmp_path / who))
            undo.callback(clones[-1].client.close)
        (made,) = template.every()
        assert made.about()["mounted_share"]
        for clone, who in zip(clones, ("one", "two"), strict=True):
            said = clone.said("c", "cat /mine; ls /all /all/same; echo new > /written")
            assert said == [who, "/all:", "same", "/all/same:", "rootfs"]
            assert (tmp_path / who / "written").read_text() == "new\n"
        for clone, who in zip(clones, ("one", "two"), strict=True):
            (tmp_path / who / f"later-{who}").touch()
            assert clone.said("d", "cat /mine; cd /; ls -d later* written") == [who, f"later-{who}", "written"]


def test_a_container_that_comes_again_sees_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the guest may keep for ever what it has looked up, and the one before had the same names."""
    with short_directory() as directory, ExitStack() as undo:
        monkeypatch.setenv("HAKO_STATE_DIR", str(directory))
        monkeypatch.setenv("HAKO_CACHE_DIR", cache_without_templates(tmp_path))
        config = configuration.parse(stack.tables())
        config = msgspec.structs.replace(config, share=msgspec.structs.replace(config.share, cache="always"))
        vm = spare.make(config, lambda _level, message: print(message))
        undo.callback(vm.close)
        clone = Clone(vm, tmp_path / "one")
        undo.callback(clone.client.close)
        assert clone.said("same", "cat /mine") == ["one"]
        clone.do("RemoveContainer", container_id="same")
        vm.files.remove("same")
        clone.show(tmp_path / "two")
        assert clone.said("same", "cat /mine") == ["two"]


def test_what_changes_on_the_host_is_seen(hako: Hako, tmp_path: Path) -> None:
    """A restored guest's caches are as fresh as a booted one's: new names, and contents of old ones."""
    name = hako.detached("-v", _volume(tmp_path / "v", "old"), hako.image, "sleep", "1000")
    assert _said(hako, name, "cat /volume/mine; ls /volume; ls /volume/later || true") == ["old", "mine"]
    (tmp_path / "v/mine").write_text("newer\n")
    (tmp_path / "v/later").write_text("late\n")
    said = _said(hako, name, "sleep 1.1; cat /volume/mine /volume/later; ls /volume")
    assert said == ["newer", "late", "later", "mine"]


@pytest.mark.parametrize("hako", ["[factory]\npool = 1\n"], indirect=True, ids=["pool"])
def test_a_vm_of_the_pool_has_it_mounted_too(hako: Hako, tmp_path: Path) -> None:
    """The exercise before a pod leaves the mount to it, and nothing in it."""
    deadline = time.monotonic() + SECONDS
    while not any(pool["ready"] for pool in _status(hako)["pools"]):
        assert time.monotonic() < deadline, _status(hako)
        time.sleep(0.1)
    name = hako.detached("-v", _volume(tmp_path / "v", "mine"), hako.image, "sleep", "1000")
    assert "fit" in hako.run("trace", name, check=True).stdout, "it came from the pool"
    assert _said(hako, name, "cat /volume/mine") == ["mine"]


def test_containers_come_and_go(hako: Hako) -> None:
    """The share stays when its first container has gone, and a pod ends as ever."""
    first = hako.detached("--name", "first", hako.image, "sleep", "1000")
    for _ in range(2):
        assert hako.run("exec", first, "cat", "/etc/hostname").returncode == 0
    hako.run("rm", "-f", first, check=True)
    hako.assert_nothing_left()


def test_where_it_cannot_be_saved_after_all_the_share_is_plugged(tmp_path: Path) -> None:
    """A QEMU that says it is newer than it is: the template is made without the share, the status says why."""
    real = "/usr/bin/qemu-system-x86_64"
    if stack.qemu() == real:
        pytest.skip(f"{real} can save it")
    with installation() as hako:
        liar = hako.directory / "qemu"
        liar.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ echo QEMU emulator version 10.9.9; exit; }}\nexec {real} "$@"\n')
        liar.chmod(0o755)
        stack.use(hako.directory, str(liar))
        hako.environment["HAKO_CACHE_DIR"] = cache_without_templates(tmp_path / "cache")
        hako.run("factory", "init", check=True)
        found = _status(hako)
        assert [row["mounted_share"] for row in found["templates"]] == [False]
        assert "vhost-user-fs" in found["plugged"]
        name = hako.detached(hako.image, "sleep", "1000")
        assert "restore" in hako.run("trace", name, check=True).stdout
        hako.remove_everything()
