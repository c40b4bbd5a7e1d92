"""The spec of a throw-away container: it has of everything something, as engines and `hako run` have.

Owns: that spec. Called by agent.warm and agent.rehearsal, which make such a container, and by agent.container.standby, which only
plans one.
"""

from __future__ import annotations

from agent import sampleprogram, sandbox_storages
from agent.api import jsonmap, oci_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "warm"
PROGRAM = "/link"
"""a symbolic link to its program, as most of a small image's programs are"""
SHM = sandbox_storages.SHM.mount_point
DEVICES = ((1, 3), (1, 5), (1, 7), (5, 0), (1, 8), (1, 9), (5, 1), (5, 2), (136, None))
"""what engines allow: major, minor (None: any); their program is in the kernel of every clone"""


def container(rootfs: str) -> oci_pb2.Spec:
    """With its root at `rootfs`, where sampleprogram.py has put its program."""
    spec = oci_pb2.Spec()
    jsonmap.fill(spec, spec_of(rootfs))
    return spec


def spec_of(rootfs: str) -> dict[str, Any]:
    """A spec that has of everything something, as `hako run` and engines have."""
    caps = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"]
    safe = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [10]},
            "args": [PROGRAM],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": rootfs, "readonly": False},
        "hostname": NAME,
        "mounts": [
            _mount("/proc", "proc", "proc", safe),
            _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
            _mount("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            _mount("/dev/shm", "bind", SHM, ["rbind", *safe]),
            _mount("/dev/mqueue", "mqueue", "mqueue", safe),
            _mount("/sys", "sysfs", "sysfs", [*safe, "ro"]),
            _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")],
            "resources": {
                "cpu": {"shares": 1024, "quota": 100000, "period": 100000},
                "memory": {"limit": 64 << 20},
                "pids": {"limit": 100},
                "devices": device_rules(DEVICES),
            },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/acpi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/sys", "/proc/irq"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 1,
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["execve", *sampleprogram.NUMBERS], "action": "SCMP_ACT_ALLOW"}],
            },
        },
    }


def device_rules(allowed: tuple[tuple[int, int | None], ...]) -> list[dict[str, Any]]:
    """Nothing but those."""
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for major, minor in allowed:
        rule: dict[str, Any] = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        rules.append(rule if minor is None else rule | {"minor": minor})
    return rules


def _mount(destination: str, fstype: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": fstype, "source": source, "options": options}
