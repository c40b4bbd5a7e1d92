"""QEMU's command line: whole lines as golden files, and what must hold for each of them."""

from __future__ import annotations

import pytest

from agent.arrival import PORT_NAME
from shim.hypervisor.base import Disk, Nic, Share, VmSpec, Vsock
from shim.hypervisor.qemu import argv
from shim.hypervisor.qemu.argv import Fds, Options
from tests.framework import golden

MINIMAL = VmSpec("hako-s1", "00000000-0000-4000-8000-000000000001", "/lib/hako/vmlinux", "/lib/hako/image.erofs")
FULL = MINIMAL._replace(
    vcpus=2,
    max_vcpus=4,
    memory_mib=384,
    max_memory_mib=4096,
    share=Share(20, "kataShared"),
    vsock=Vsock(21),
    nics=(Nic(22, "02:00:00:00:00:01"), Nic(23, "02:00:00:00:00:02", 9000, vhost_fd=24)),
    disks=(Disk("/dev/loop7", read_only=False, id="data"),),
    cmdline_extra="agent.log=debug",
)
CASES = {
    "minimal": (MINIMAL, Fds(10, 11, 15, disks=(12,)), Options(ports=0)),
    "full": (FULL, Fds(10, 11, 15, disks=(12, 13)), Options()),
    "kvm": (
        MINIMAL._replace(accelerator="kvm", vsock=Vsock(21, 77)),
        Fds(10, 11, 15, disks=(12,)),
        Options(ports=1),
    ),
    "initrd-serial": (
        MINIMAL._replace(image=None, kernel="/boot/vmlinuz", initrd="/lib/hako/initrd", serial=True),
        Fds(10, 11, 15, 16, 14),
        Options(ports=0, seccomp=False, cpu_model="Haswell", tb_size=0),
    ),
    "microvm": (
        FULL._replace(max_memory_mib=0, disks=()),
        Fds(10, 11, 15, disks=(12,)),
        Options(machine="microvm"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_command_line(case: str) -> None:
    """The whole command line is what was reviewed."""
    golden.check(f"qemu/{case}.txt", golden.command_lines(argv.command(*CASES[case])))


def test_an_emulated_guest_is_told_the_speed_of_its_counter() -> None:
    """Left to itself it may find a wrong one; with KVM it has a better way."""
    emulated = argv.kernel_command_line(MINIMAL, 2100000).split()
    assert "tsc_early_khz=2100000" in emulated
    assert "tsc_early_khz" not in argv.kernel_command_line(MINIMAL)
    assert "tsc_early_khz" not in argv.kernel_command_line(MINIMAL._replace(accelerator="kvm"), 2100000)


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_opened_by_path(case: str) -> None:
    """QEMU runs as a user who may open nothing: all else is a descriptor."""
    words = argv.command(*CASES[case])[1:]
    append = words.index("-append") + 1
    paths = [
        word
        for word in words[:append] + words[append + 1 :]
        if "/" in word and not word.startswith("/proc/self/fd/") and "filename=/dev/fdset/" not in word
    ]
    assert paths == []


@pytest.mark.parametrize("case", CASES)
def test_guest_image_is_read_only_at_the_backend(case: str) -> None:
    """The image cannot be written however the guest asks (CVE-2020-2025)."""
    words = argv.command(*CASES[case])
    for word in words:
        if "node-name=disk-root" in word:
            assert "read-only=on,file." in word
            assert "file.read-only=on" in word
    assert not any("readonly=off" in word or "snapshot" in word for word in words)


def test_seccomp_denies_all_that_qemu_can_do_without() -> None:
    """No new privileges, no programs, no priorities, no obsolete calls."""
    words = argv.command(*CASES["full"])
    assert words[words.index("-sandbox") + 1] == ("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")


def test_devices_have_distinct_places() -> None:
    """Two devices in one slot would be refused by QEMU only at launch."""
    words = argv.command(*CASES["full"])
    places = [part for word in words for part in word.split(",") if part.startswith("addr=")]
    assert len(places) == len(set(places))
    assert len(places) == 9 + 8  # devices and ports


def test_panic_ends_the_vm() -> None:
    """A guest that panics reboots, and -no-reboot makes that QEMU's end, which is noticed at once."""
    for spec, fds, options in CASES.values():
        words = argv.command(spec, fds, options)
        assert "-no-reboot" in words
        assert " panic=-1 " in words[words.index("-append") + 1]


def test_users_kernel_parameters_come_last() -> None:
    """The kernel takes the last of contradicting words, so the configured ones win."""
    assert argv.kernel_command_line(FULL).endswith(" agent.log=debug")


def test_serial_port_only_when_asked() -> None:
    """Each character on a serial port costs an exit: no fast boot has one."""
    assert "ttyS0" not in " ".join(argv.command(*CASES["full"]))
    assert "quiet" not in argv.kernel_command_line(CASES["initrd-serial"][0])


def test_a_clone_is_the_template_that_waits() -> None:
    """The same command line, so that the saved state fits, and the RAM is the file that was given."""
    spec, fds, options = MINIMAL._replace(template=True, memory_fd=30), Fds(10, 11, 15, disks=(12,)), Options(ports=2)
    template = argv.command(spec, fds, options)
    assert argv.command(spec, fds, options, incoming=True) == [*template, "-S", "-incoming", "defer"]
    assert "memory-backend-file,mem-path=/proc/self/fd/30,id=ram,size=256M,share=on" in template
    assert template[template.index("-append") + 1].endswith(" agent.template=1")


def test_clones_rehearse_on_a_second_emulated_vcpu() -> None:
    """With KVM nothing is translated; on a single vCPU it would be in the way; a guest that boots is warm when it is up."""
    spec, fds, options = MINIMAL._replace(template=True, vcpus=2), Fds(10, 11, 15, disks=(12,)), Options()
    assert "agent.rehearse=1" in argv.kernel_command_line(spec).split()
    assert "agent.rehearse=1" in " ".join(argv.command(spec, fds, options))
    for other in (spec._replace(vcpus=1), spec._replace(accelerator="kvm"), spec._replace(template=False)):
        assert "agent.rehearse" not in argv.kernel_command_line(other)


def test_a_share_is_mounted_by_a_template_only() -> None:
    """Any other guest is told at CreateSandbox. The device of a clone is the template's, with a connection of its own."""
    spec = MINIMAL._replace(template=True, share=Share(20, "kataShared"), mounted=True)
    fds, options = Fds(10, 11, 15, disks=(12,)), Options()
    template = argv.command(spec, fds, options)
    assert template[template.index("-append") + 1].endswith(" agent.template=1 agent.share=kataShared")
    assert "agent.share" not in " ".join(argv.command(spec._replace(template=False), fds, options))
    clone = argv.command(spec._replace(share=Share(21, "kataShared")), fds, options, incoming=True)
    differ = [(a, b) for a, b in zip(template, clone, strict=False) if a != b]
    assert differ == [("socket,id=share,fd=20", "socket,id=share,fd=21")]
    assert argv.placeholder_names(spec) == ["vsock"]


def test_a_share_that_is_not_saved_is_beside_the_vsock_device() -> None:
    """Where its clones get theirs plugged: the template's goes before the vsock device, which is function 0."""
    spec = MINIMAL._replace(template=True, share=Share(20, "kataShared"), vsock=Vsock(21))
    words = argv.command(spec, Fds(10, 11, 15, disks=(12,), arrival=16), Options())
    (place,) = [word for word in words if word.startswith("vhost-user-fs-pci")]
    assert place.startswith("vhost-user-fs-pci,id=share,bus=port0,addr=0.1,")
    assert "agent.share" not in " ".join(words)
    assert argv.placeholder_names(spec) == ["share", "vsock"]
    assert "vhost-user-fs" not in " ".join(argv.command(spec._replace(share=None), Fds(10, 11, 15, disks=(12,)), Options()))


def test_a_template_has_a_vsock_device_in_its_clones_place() -> None:
    """Its clones' command lines have none: it is taken away before the VM is saved."""
    spec = MINIMAL._replace(template=True, vsock=Vsock(14))
    words = argv.command(spec, Fds(10, 11, 15, disks=(12,), arrival=16), Options(ports=2))
    place = "id=vsock,bus=port0,addr=0.0,multifunction=on,vectors=0"
    assert words.index(f"vhost-user-vsock-pci,{place},chardev=vsock") > words.index(argv.root_port(0))
    assert sum("vsock-pci" in word for word in words) == 1
    assert f"virtserialport,bus=serial0.0,chardev=arrival,name={PORT_NAME}" in words
    assert argv.placeholders(spec._replace(vsock=Vsock(14, 7), accelerator="kvm")) == [
        "-device", "vhost-vsock-pci,id=vsock,bus=port0,addr=0.0,multifunction=on,vhostfd=14,guest-cid=7",
    ]  # fmt: skip


def test_emulated_clones_need_no_generation_id() -> None:
    """The host reseeds them; ACPI's events are dear there."""
    line = " ".join(argv.command(MINIMAL._replace(template=True), Fds(10, 11, 15, disks=(12,)), Options(ports=2)))
    assert "vmgenid" not in line
    hardware = MINIMAL._replace(template=True, accelerator="kvm")
    assert "vmgenid,guid=auto" in argv.command(hardware, Fds(10, 11, 15, disks=(12,)), Options(ports=2))


def test_firmware_of_a_qemu_elsewhere_is_beside_it() -> None:
    """One that was unpacked must not find the firmware of the distribution's, which finds its own by itself."""
    spec, fds, _ = CASES["minimal"]
    words = argv.command(spec, fds, Options(binary="/opt/q10/usr/bin/qemu-system-x86_64"))
    assert words[1:5] == ["-L", "/opt/q10/usr/share/qemu", "-L", "/opt/q10/usr/share/seabios"]
    assert "-L" not in argv.command(spec, fds, Options())
