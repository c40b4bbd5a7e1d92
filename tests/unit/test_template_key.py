"""A template's key: everything that a saved VM depends on changes it, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shim.config import Config, FactoryConfig, HypervisorConfig
from shim.hypervisor.qemu.driver import Qemu
from shim.sandbox import templatekey, vmspec
from shim.sandbox.guestfiles import GuestFiles
from shim.sandbox.plan import HostLimits

HOST = HostLimits(4, 8192)


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> GuestFiles:
    """Files that need not boot, in a directory that holds the cache too."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("kernel", "image", "initrd", "qemu"):
        (tmp_path / name).write_text(name)
    (tmp_path / "qemu").write_text("#!/bin/sh\necho QEMU emulator version 7.2.22\n")
    (tmp_path / "qemu").chmod(0o755)
    return GuestFiles(str(tmp_path / "kernel"), str(tmp_path / "image"), "")


def config(guest: GuestFiles, section: str = "", **changes: Any) -> Config:
    """A configuration with one section changed."""
    base = Config(hypervisor=HypervisorConfig(path=os.path.join(os.path.dirname(guest.kernel), "qemu"), default_vcpus=2))
    if not section:
        return base
    return msgspec.structs.replace(base, **{section: msgspec.structs.replace(getattr(base, section), **changes)})


def key(guest: GuestFiles, given: Config | None = None, accelerator: str = "tcg", vcpus: int = 2, host: HostLimits = HOST) -> str:
    """The key of a template."""
    given = given or config(guest)
    spec = vmspec.of_template(given, guest, accelerator, vcpus, host)
    return templatekey.identify(given, spec, Qemu(given.hypervisor)).key


def test_it_is_the_same_for_the_same(guest: GuestFiles) -> None:
    """Also when files were only touched, or are the same at another place."""
    before = key(guest)
    assert key(guest) == before
    os.utime(guest.kernel, (1, 1))
    copy = guest.image + "-copy"
    Path(copy).write_text("image")
    assert key(guest._replace(image=copy)) == before
    unlike = config(guest, "factory", restore_timeout=1.0, keep=9)
    assert key(guest, unlike) == before


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("hypervisor", {"default_memory": 512}),
        ("hypervisor", {"max_memory": 4096}),
        ("hypervisor", {"cpu_model": "Haswell"}),
        ("hypervisor", {"tcg_tb_size": 32}),
        ("hypervisor", {"hotplug_ports": 4}),
        ("hypervisor", {"seccomp_sandbox": False}),
        ("guest", {"kernel_params": "quiet"}),
        ("agent", {"log_level": "debug"}),
    ],
)
def test_settings_change_it(guest: GuestFiles, section: str, changes: dict[str, Any]) -> None:
    """Those that the VM is made of."""
    assert key(guest, config(guest, section, **changes)) != key(guest)


def test_the_machine_changes_it(guest: GuestFiles) -> None:
    """Number of vCPUs, accelerator, the host's memory where it is the limit."""
    keys = {
        key(guest),
        key(guest, vcpus=3),
        key(guest, accelerator="kvm"),
        key(guest, host=HostLimits(4, 4096)),
        key(guest._replace(image="", initrd=guest.image)),
    }
    assert len(keys) == 5


@pytest.mark.parametrize("name", ["kernel", "image"])
def test_contents_change_it(guest: GuestFiles, name: str) -> None:
    """Even when size and time stay the same."""
    before, path = key(guest), Path(getattr(guest, name))
    times = path.stat()
    path.write_text(path.read_text()[::-1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert key(guest) != before


def test_another_qemu_changes_it(guest: GuestFiles) -> None:
    """The binary counts, not only the version that it tells."""
    before = key(guest)
    path = Path(config(guest).hypervisor.path)
    path.write_text(path.read_text() + "# rebuilt\n")
    assert key(guest) != before


def test_every_pod_of_a_shape_has_the_same(guest: GuestFiles) -> None:
    """Names, ids and descriptors of a pod do not count."""
    given = config(guest)
    spec = vmspec.of_template(given, guest, "tcg", 2, HOST)
    qemu = Qemu(given.hypervisor)
    mine = spec._replace(name="hako-pod", uuid="1", memory_fd=77)
    assert qemu.fingerprint(mine) == qemu.fingerprint(spec)
    assert "agent.template=1" in " ".join(qemu.fingerprint(spec))


@pytest.mark.parametrize(
    ("section", "changes", "reason"),
    [
        ("factory", {"template": False}, "[factory] template = false"),
        ("hypervisor", {"machine_type": "microvm"}, "a microvm has no hot-plug"),
        ("hypervisor", {"hotplug_ports": 0}, "[hypervisor] hotplug_ports = 0"),
        ("hypervisor", {"debug_serial": True}, "[hypervisor] debug_serial = true"),
    ],
)
def test_where_there_are_no_templates(guest: GuestFiles, section: str, changes: dict[str, Any], reason: str) -> None:
    """The reason is the setting."""
    assert vmspec.no_template(config(guest, section, **changes)) == reason
    assert vmspec.no_template(config(guest)) == ""
    assert FactoryConfig().template


@pytest.mark.parametrize(
    ("configured", "accelerator", "cpus", "wanted", "vcpus"),
    [
        (0, "tcg", 4, 1, 2), (0, "tcg", 1, 1, 1), (0, "tcg", 4, 2, 2), (0, "tcg", 4, 3, 3), (0, "kvm", 4, 1, 1),
        (1, "tcg", 4, 1, 1), (3, "tcg", 4, 3, 3),
    ],
)  # fmt: skip
def test_a_second_vcpu_is_for_the_emulator(
    guest: GuestFiles, configured: int, accelerator: str, cpus: int, wanted: int, vcpus: int
) -> None:
    """Only where nobody has said how many, and the host has a core for it; a pod's own count comes to the same one."""
    given, host = config(guest, "hypervisor", default_vcpus=configured), HostLimits(cpus, 4096)
    assert vmspec.vcpus(given, accelerator, wanted, host) == vcpus
    if wanted == (configured or 1):
        assert vmspec.default_vcpus(given, accelerator, host) == vcpus


def test_the_emulator_needs_a_template_for_each_number_of_vcpus(guest: GuestFiles) -> None:
    """KVM plugs what is missing."""
    assert vmspec.template_vcpus(config(guest), "tcg", 3) == 3
    assert vmspec.template_vcpus(config(guest), "kvm", 3) == 2
