"""`hako check`: findings from what a host has, and how they are told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shim import config, process
from shim.cli import check, hostchecks
from shim.cli.hostchecks import Finding
from shim.errors import ConfigError
from tests.framework import guestboot


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers about programs are remembered in a cache of the test's own."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path / "cache"))


def _program(directory: Path, name: str, says: str) -> str:
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return str(path)


def _configure(monkeypatch: pytest.MonkeyPatch, **sections: dict[str, object]) -> None:
    monkeypatch.setattr(config, "load", lambda: config.parse(dict(sections)))


@pytest.mark.parametrize(
    ("said", "level"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", "ok"),
        ("QEMU emulator version 10.0.2", "ok"),
        ("QEMU emulator version 6.9.0", "fail"),
        ("something else", "fail"),
    ],
)
def test_qemu_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, level: str) -> None:
    """QEMU before 7.2 is refused, and so is a program that is not QEMU."""
    _configure(monkeypatch, hypervisor={"path": _program(tmp_path, "qemu", said)})
    assert hostchecks.qemu()[0] == level


def test_missing_qemu_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing comes with the command that brings it."""
    _configure(monkeypatch, hypervisor={"path": "/none/qemu"})
    level, text, remedy = hostchecks.qemu()
    assert (level, remedy) == ("fail", "apt-get install qemu-system-x86") and "/none/qemu" in text


def test_a_bad_configuration_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable configuration fails its item with the reason, and the others are still looked at."""

    def broken() -> config.Config:
        raise ConfigError("no such key", file="/etc/hako/configuration.toml", line=3)

    monkeypatch.setattr(config, "load", broken)
    found = hostchecks.finding("configuration", hostchecks.settings)
    assert found.level == "fail" and "configuration.toml:3" in found.text


def test_a_missing_kernel_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a guest kernel nothing boots: a failure with the command that makes one."""
    _configure(monkeypatch)
    level, text, remedy = hostchecks.guest()
    assert level == "fail" and "kernel" in text and "make guest" in remedy


def test_a_configured_accelerator_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator that the administrator chose is shown as such; TCG is a warning, not a failure."""
    (tmp_path / "vmlinux").write_bytes(guestboot.elf())
    (tmp_path / "image.erofs").write_bytes(guestboot.erofs())
    boots: dict[str, object] = {"kernel": str(tmp_path / "vmlinux"), "image": str(tmp_path / "image.erofs")}
    _configure(monkeypatch, guest=boots, hypervisor={"accelerator": "tcg"})
    assert hostchecks.accelerator()[:2] == ("warn", "tcg (everything is emulated): configured")


@pytest.mark.parametrize(
    ("kernel", "image", "words"),
    [
        (guestboot.elf(machine=183), guestboot.erofs(), "vmlinux: is a kernel for another architecture (arm64)"),
        (guestboot.arm64_image(), guestboot.erofs(), "vmlinux: is a kernel for another architecture (arm64)"),
        (b"root:x:0:0", guestboot.erofs(), "vmlinux: is not a kernel"),
        (b"", guestboot.erofs(), "vmlinux: is not a kernel"),
        (guestboot.elf(), b"squashfs", "image.erofs: is not an erofs file system"),
        (None, guestboot.erofs(), "vmlinux: Is a directory"),
        (guestboot.bzimage(), guestboot.erofs(), ""),
    ],
    ids=["arm64 ELF", "arm64 Image", "text", "empty", "no erofs", "directory", "bzImage"],
)
def test_what_cannot_boot_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bytes | None, image: bytes, words: str
) -> None:
    """Files of another kind or for another processor are named before a VM is begun."""
    if kernel is None:
        (tmp_path / "vmlinux").mkdir()
    else:
        (tmp_path / "vmlinux").write_bytes(kernel)
    (tmp_path / "image.erofs").write_bytes(image)
    _configure(monkeypatch, guest={"kernel": str(tmp_path / "vmlinux"), "image": str(tmp_path / "image.erofs")})
    found = hostchecks.finding("guest", hostchecks.guest)
    assert (found.level, words in found.text) == ("fail" if words else "ok", True), found


@pytest.mark.parametrize(("said", "kind"), [("virtiofsd 1.13.0", "1.13.0"), ("using FUSE kernel interface 7.36", "C daemon")])
def test_virtiofsd_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: str) -> None:
    """Which of the two daemons it is, is told."""
    _configure(monkeypatch, share={"daemon": _program(tmp_path, "virtiofsd", said)})
    level, text, _ = hostchecks.virtiofs()
    assert level == "ok" and kind in text


@pytest.mark.parametrize(("there", "level"), [(True, "ok"), (False, "fail")])
def test_without_a_shared_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, level: str) -> None:
    """What is needed is the program that packs images, not a daemon."""
    if there:
        _program(tmp_path, "mkfs.erofs", "usage")
    monkeypatch.setattr(process, "PATH", str(tmp_path))
    _configure(monkeypatch, share={"shared_fs": "none", "daemon": "/none"})
    found = hostchecks.virtiofs()
    assert found[0] == level and ("mkfs.erofs" in found[1])


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has less than one pod needs is not ready."""
    _configure(monkeypatch, hypervisor={"default_memory": 1 << 30})
    assert hostchecks.memory()[0] == "fail"


def test_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only amd64 is supported, and this is said."""
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "6", "1", "aarch64")))
    assert hostchecks.architecture() == ("fail", "aarch64: only x86_64 is supported", "use another host")


def test_a_missing_user_is_only_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the system user QEMU runs as nobody: less apart, but it runs."""
    _configure(monkeypatch, runtime={"user": "no-such-user"})
    level, text, remedy = hostchecks.user()
    assert level == "warn" and "nobody" in text and "useradd" in remedy


def test_missing_image_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without umoci engines still work, and its package is named."""
    monkeypatch.setattr(process, "PATH", "/none")
    level, _, remedy = hostchecks.images()
    assert (level, remedy) == ("warn", "apt-get install skopeo umoci")


def test_text_and_json_say_the_same() -> None:
    """Each item is one line, its remedy below it; the JSON has the same fields."""
    findings = [Finding("tun", "ok", "/dev/net/tun"), Finding("memory", "fail", "3 MiB", "buy some")]
    text = check.as_text(findings, coloured=False)
    assert text.splitlines() == [
        "ok    tun     /dev/net/tun",
        "fail  memory  3 MiB",
        " " * 14 + "-> buy some",
    ]
    told = json.loads(check.as_json(findings, usable=False))
    assert told["usable"] is False
    assert told["items"][1] == {"name": "memory", "level": "fail", "text": "3 MiB", "remedy": "buy some"}
