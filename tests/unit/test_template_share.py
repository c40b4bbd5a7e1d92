"""Templates with the share mounted: where there are any, their key, and what is taken instead of one that fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shim.config import Config, FactoryConfig, HypervisorConfig, ShareConfig
from shim.errors import BootError
from shim.hypervisor.base import Share, VmSpec, Vsock
from shim.hypervisor.qemu.driver import Qemu
from shim.sandbox import clone, savedshare, template, templatebuild
from shim.sandbox.guestfiles import GuestFiles
from shim.sandbox.templatebuild import Shape

C_VERSION = "virtiofsd version 7.2.22\nusing FUSE kernel interface version 7.36"


def _program(path: Path, **answers: str) -> str:
    """A program that answers --version and --help."""
    cases = "".join(f"--{option}) echo '{text}';; " for option, text in answers.items())
    path.write_text(f'#!/bin/sh\ncase "$1" in {cases}esac\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    """QEMU and virtiofsd that can do it, in a directory that holds the cache too."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path / "cache"))
    qemu = _program(tmp_path / "qemu", version="QEMU emulator version 10.0.2 (Debian 1:10.0.2)")
    daemon = _program(tmp_path / "virtiofsd", version="virtiofsd 1.14.0", help="--migration-mode")
    return Config(hypervisor=HypervisorConfig(path=qemu, accelerator="tcg"), share=ShareConfig(daemon=daemon))


@pytest.fixture
def guest(tmp_path: Path) -> GuestFiles:
    """Files that need not boot."""
    for name in ("kernel", "image"):
        (tmp_path / name).write_text(name)
    return GuestFiles(str(tmp_path / "kernel"), str(tmp_path / "image"), "")


def _changed(config: Config, section: str, **changes: Any) -> Config:
    return msgspec.structs.replace(config, **{section: msgspec.structs.replace(getattr(config, section), **changes)})


def _key(config: Config, guest: GuestFiles) -> str:
    return Shape(config, "tcg", 1, guest).identity.key


def _there(shape: Shape | None) -> template.Template:
    """Its template, with nothing in it."""
    assert shape is not None
    fd = os.memfd_create("test")
    try:
        with template.locked(shape.identity.key, wait=True):
            return template.add(shape.identity, fd, fd, {})
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("version", "possible"),
    [("7.2.22", False), ("8.1.5", False), ("8.2.0", True), ("10.0.2", True), ("11.0", True), ("unknown", False)],
)
def test_qemu_must_be_new_enough(config: Config, tmp_path: Path, version: str, possible: bool) -> None:
    """By what it says of its version; 10 is more than 8."""
    qemu = _program(tmp_path / f"qemu-{version}", version=f"QEMU emulator version {version}")
    reason = savedshare.refusal(_changed(config, "hypervisor", path=qemu))
    assert reason == ("" if possible else f"QEMU {version} cannot save a virtio-fs device, 8.2 can")


def test_virtiofsd_must_hand_on_its_state(config: Config, tmp_path: Path) -> None:
    """The C one does not, nor the Rust one before it had the option."""
    old = _program(tmp_path / "old", version="virtiofsd 1.10.1", help="--cache")
    c_daemon = _program(tmp_path / "c", version=C_VERSION, help="--migration-mode")
    for path in (old, c_daemon):
        assert "cannot hand on its state" in savedshare.refusal(_changed(config, "share", daemon=path))
    assert savedshare.refusal(config) == ""


def test_it_can_be_turned_off(config: Config, guest: GuestFiles) -> None:
    """And there is none where nothing is shared; those guests do not know a share."""
    off = _changed(config, "factory", mounted_share=False)
    none = _changed(config, "share", shared_fs="none")
    assert savedshare.refusal(off) == "[factory] mounted_share = false"
    assert savedshare.refusal(none) == '[share] shared_fs = "none"'
    assert len({_key(off, guest), _key(none, guest), _key(config, guest)}) == 3
    assert FactoryConfig().mounted_share


@pytest.mark.parametrize("changes", [{"cache": "always"}, {"thread_pool_size": 2}, {"extra_args": ("--writeback",)}])
def test_settings_of_the_share_change_the_key(config: Config, guest: GuestFiles, changes: dict[str, Any]) -> None:
    """A daemon takes up no other's state; where the share is plugged they do not matter."""
    assert _key(_changed(config, "share", **changes), guest) != _key(config, guest)
    off = _changed(config, "factory", mounted_share=False)
    assert _key(_changed(off, "share", **changes), guest) == _key(off, guest)


def test_another_virtiofsd_changes_the_key(config: Config, guest: GuestFiles) -> None:
    """And makes the template stale."""
    before = _key(config, guest)
    path = Path(config.share.daemon)
    path.write_text(path.read_text() + "# rebuilt\n")
    assert _key(config, guest) != before


def test_the_next_best_is_taken(config: Config, guest: GuestFiles) -> None:
    """The mounted one if it is there; else the plugged one, and the mounted one is made unless it has just failed."""
    best = Shape(config, "tcg", 1, guest)
    plugged = best.plugged()
    assert plugged is not None and plugged.plugged() is None
    looked = clone.find(config, guest, "tcg", 1)
    assert (looked.saved, looked.make, looked.reason) == (None, True, f"there is no template {best.identity.key} yet")
    _there(plugged)
    looked = clone.find(config, guest, "tcg", 1)
    assert looked.saved is not None and not looked.saved.spec.mounted and looked.make
    template.reject(best.identity.key, "no such luck")
    looked = clone.find(config, guest, "tcg", 1)
    assert looked.saved is not None and not looked.saved.spec.mounted and not looked.make
    _there(best)
    looked = clone.find(config, guest, "tcg", 1)
    assert looked.saved is not None and looked.saved.spec.mounted and not looked.make


def test_both_failed(config: Config, guest: GuestFiles) -> None:
    """Then the pod boots, and hears why."""
    best = Shape(config, "tcg", 1, guest)
    template.reject(best.identity.key, "no such luck")
    assert clone.find(config, guest, "tcg", 1).make, "the plugged one has not been tried"
    plugged = best.plugged()
    assert plugged is not None
    template.reject(plugged.identity.key, "nor here")
    looked = clone.find(config, guest, "tcg", 1)
    assert (looked.saved, looked.make) == (None, False)
    assert looked.reason == f"template {best.identity.key} failed: no such luck"


def test_one_that_cannot_be_made_is_made_without(config: Config, guest: GuestFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is kept, and given for the share that is plugged."""
    tried: list[bool] = []

    def save(_qemu: Qemu, spec: VmSpec, _state: int, _timeout: float) -> None:
        assert spec.share is not None and os.path.isdir(spec.share.tag)
        tried.append(spec.mounted)
        if spec.mounted:
            raise BootError("save the template", "non-migratable device")

    @contextmanager
    def empty(_config: Config, directory: str) -> Iterator[Share]:
        assert os.listdir(directory) == []
        yield Share(-1, directory)

    monkeypatch.setattr(Qemu, "save", save)
    monkeypatch.setattr(savedshare, "empty", empty)
    monkeypatch.setattr(templatebuild, "_vsock", lambda *_: nullcontext(Vsock(-1)))
    best = Shape(config, "tcg", 1, guest)
    made = templatebuild.build(config, best)
    plugged = best.plugged()
    assert made is not None and plugged is not None and made.key == plugged.identity.key
    assert tried == [True, False]
    assert made.about()["mounted_share"] is False
    assert "non-migratable" in plugged.unmounted
    assert [name for name in os.listdir(template.root()) if name.endswith(template.DRAFT)] == []
