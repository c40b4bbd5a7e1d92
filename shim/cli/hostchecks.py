"""What hako needs of a host, each item by itself: what is there, whether it will do, and the remedy if not.

Owns: the list. Must not know: how the findings are shown (check.py). A look that fails unexpectedly is a
finding too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, NamedTuple

from shim import config as configuration
from shim import paths, process, tools
from shim.errors import HakoError, NotFound
from shim.hypervisor import host
from shim.sandbox import guestfiles
from shim.share import virtiofsd

Level = Literal["ok", "warn", "fail"]
SUPPORTED = "x86_64"
QEMU_MINIMUM = (7, 2)
QUICK = 20.0  # seconds for a program to say its version
MIB = 1 << 20


class Finding(NamedTuple):
    """One item: its name, whether it will do, what was found, and what to do about it ("" for nothing)."""

    name: str
    level: Level
    text: str
    remedy: str = ""


Look = Callable[[], tuple[Level, str, str]]


def finding(name: str, look: Look) -> Finding:
    """The result of one look; an error in it is its result."""
    try:
        return Finding(name, *look())
    except (HakoError, OSError, ValueError) as exc:
        return Finding(name, "fail", str(exc))


def install(package: str) -> str:
    """The command that brings a distribution's package."""
    return f"apt-get install {package}"


def architecture() -> tuple[Level, str, str]:
    """The guest runs the host's machine code."""
    machine = os.uname().machine
    if machine == SUPPORTED:
        return "ok", machine, ""
    return "fail", f"{machine}: only {SUPPORTED} is supported", "use another host"


def privileges() -> tuple[Level, str, str]:
    """Mounts, namespaces and cgroups are root's."""
    if os.geteuid() == 0:
        return "ok", "root", ""
    return "fail", "not root: containers cannot be run by this user", "sudo hako ..."


def settings() -> tuple[Level, str, str]:
    """The configuration can be read."""
    configuration.load()
    there = [path for path in paths.config_candidates() if os.path.exists(path)]
    return "ok", there[0] if there else "built-in defaults", ""


def qemu() -> tuple[Level, str, str]:
    """The virtual machine monitor, and not one that is too old."""
    path = configuration.load().hypervisor.path
    if not os.access(path, os.X_OK):
        return "fail", f"{path} is not there", install("qemu-system-x86")
    version = host.version(configuration.load().hypervisor)
    if host.version_numbers(version) < QEMU_MINIMUM:
        return "fail", f"{version}: too old", "QEMU 7.2 or newer"
    return "ok", f"{version}, {path}", ""


def guest() -> tuple[Level, str, str]:
    """What boots in the virtual machine."""
    try:
        files = guestfiles.find(configuration.load().guest)
    except NotFound as exc:
        return "fail", f"{exc.object}: {exc.message}" if exc.object else exc.message, exc.hint
    missing = [path for path in files if path and not os.access(path, os.R_OK)]
    if missing:
        return "fail", f"{missing[0]} cannot be read", f"chmod a+r {missing[0]}"
    return "ok", f"{files.kernel} with {files.image or files.initrd}", ""


def accelerator() -> tuple[Level, str, str]:
    """How the guest's processor runs: with KVM, if it really boots our kernel."""
    config = configuration.load()
    files = guestfiles.find(config.guest)
    probed = host.GuestFiles(files.kernel, files.image or None, files.initrd or None)
    found = host.probe_accelerator(config.hypervisor, probed, _confinement(config.runtime.user))
    if found.name == "kvm":
        return "ok", f"kvm: {found.reason}", ""
    reason, _, command = found.reason.partition(": chgrp")
    remedy = f"chgrp{command}" if command else "a host with working KVM is several times faster"
    return "warn", f"tcg (everything is emulated): {reason}", remedy


def templates() -> tuple[Level, str, str]:
    """Whether the next pod starts from a template; without one it boots, which is slower and no fault."""
    from shim.cli import factory

    found = factory.described(configuration.load())
    if any(item["state"] == "in use" for item in found["templates"]):
        return "ok", f"pods start from template {found['wanted']}", ""
    if not found["wanted"]:
        return "warn", f"pods boot: {found['reason']}", "without templates a start takes several times as long"
    if found["reason"]:
        return "warn", f"template {found['wanted']} failed: {found['reason']}", "hako factory init"
    return "ok", "the first pod boots, and makes the template for the others (or: hako factory init)", ""


def _confinement(user: str) -> process.Confinement:
    """The user that QEMU runs as, for whom KVM has to work."""
    import pwd

    for name in (user, "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return process.Confinement(uid=entry.pw_uid, gid=entry.pw_gid, groups=host.kvm_groups())
    return process.Confinement()


def virtiofs() -> tuple[Level, str, str]:
    """How containers' files reach the guest: a daemon, or the program that packs root filesystems."""
    share = configuration.load().share
    if share.shared_fs == "none":
        mkfs = _which("mkfs.erofs")
        return ("ok", f"no virtio-fs, {mkfs}", "") if mkfs else ("fail", "no mkfs.erofs", install("erofs-utils"))
    try:
        daemon = virtiofsd.find(share.daemon)
    except NotFound:
        return "fail", "no virtiofsd", install("virtiofsd (Debian 13) or qemu-system-common (Debian 12)")
    return "ok", f"{daemon.path} ({_virtiofsd_version(daemon)})", ""


def _virtiofsd_version(daemon: virtiofsd.Daemon) -> str:
    said = _version(daemon.path)
    return f"the C daemon, {said.split('(')[0].strip()}" if daemon.kind == "c" else said


def tun() -> tuple[Level, str, str]:
    """Each interface of a pod is a tap device."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return "fail", f"/dev/net/tun: {exc.strerror}", "modprobe tun"
    return "ok", "/dev/net/tun", ""


def cgroups() -> tuple[Level, str, str]:
    """Where a pod's limits are put on the host. The guest always has cgroup v2."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as stream:
        found = [(line.split(" ")[4], line.partition(" - ")[2].split(" ")[0]) for line in stream]
    unified = [point for point, kind in found if kind == "cgroup2"]
    old = sorted(point for point, kind in found if kind == "cgroup")
    if old:
        names = ", ".join(os.path.basename(point) for point in old)
        return "ok", f"version 1{' and 2' if unified else ''}: {names}", ""
    if not unified:
        return "fail", "no cgroup file system is mounted", "mount -t cgroup2 none /sys/fs/cgroup"
    with open(os.path.join(unified[0], "cgroup.controllers"), encoding="ascii") as stream:
        have = stream.read().split()
    missing = {"cpu", "memory", "pids"} - set(have)
    if missing:
        return "warn", f"version 2 without {', '.join(sorted(missing))}", "limits act in the guest only"
    return "ok", f"version 2: {', '.join(have)}", ""


def memory() -> tuple[Level, str, str]:
    """Room for at least one virtual machine."""
    need = configuration.load().hypervisor.default_memory
    with open("/proc/meminfo", encoding="ascii") as stream:
        fields = dict(line.split(":", 1) for line in stream)
    free = int(fields["MemAvailable"].split()[0]) // 1024
    if free < need:
        return "fail", f"{free} MiB available, a pod needs {need} MiB", "free some, or lower default_memory"
    return "ok", f"{free} MiB available, {need} MiB for a pod", ""


def user() -> tuple[Level, str, str]:
    """The unprivileged user of QEMU and its daemons."""
    import pwd

    name = configuration.load().runtime.user
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        remedy = f"make install makes it; or useradd --system --no-create-home --shell /usr/sbin/nologin {name}"
        return "warn", f"there is no user {name}: QEMU runs as nobody", remedy
    return "ok", f"{name}, uid {found.pw_uid}", ""


def images() -> tuple[Level, str, str]:
    """What fetches and unpacks images for `hako run`; engines bring their own."""
    chosen = configuration.load().image
    found, missing = [], []
    for program, package in ((chosen.skopeo, "skopeo"), (chosen.umoci, "umoci")):
        path = _which(program)
        found.append(_version(path)) if path else missing.append(package)
    if missing:
        return (
            "warn",
            f"no {' and no '.join(missing)}: `hako run` has only --rootfs",
            install(" ".join(missing)),
        )
    return "ok", ", ".join(found), ""


def nat() -> tuple[Level, str, str]:
    """What `hako run --network nat` masquerades with."""
    path = _which("nft")
    if path:
        return "ok", _version(path), ""
    return "warn", "no nft: `hako run` has no --network nat", install("nftables")


def commands() -> tuple[Level, str, str]:
    """Whether containerd would find the shim."""
    name = "containerd-shim-hako-v2"
    path = _which(name)
    if path:
        return "ok", path, ""
    return "warn", f"{name} is not on {process.PATH}", "make install"


def vsock() -> tuple[Level, str, str]:
    """The channel to the agent."""
    if os.path.exists("/dev/vhost-vsock"):
        return "ok", "/dev/vhost-vsock", ""
    daemon = configuration.load().vsock.daemon
    path = tools.find("vhost-device-vsock", (daemon,) if daemon else ())
    if path:
        return "ok", f"no /dev/vhost-vsock; {_version(path)} in its place", ""
    return "fail", "neither /dev/vhost-vsock nor vhost-device-vsock", "modprobe vhost_vsock, or make guest"


def _which(program: str) -> str:
    import shutil

    return shutil.which(program, path=process.PATH) or ""


def _version(path: str) -> str:
    """The first line that a program says about its version."""
    lines = process.run([path, "--version"], QUICK).decode(errors="replace").strip().splitlines()
    return lines[0] if lines else os.path.basename(path)


CHECKS: dict[str, Look] = {
    "architecture": architecture,
    "privileges": privileges,
    "configuration": settings,
    "QEMU": qemu,
    "guest": guest,
    "accelerator": accelerator,
    "templates": templates,
    "vsock": vsock,
    "virtio-fs": virtiofs,
    "tun": tun,
    "cgroups": cgroups,
    "memory": memory,
    "user": user,
    "images": images,
    "NAT": nat,
    "commands": commands,
}
