"""The answer to `-info`: containerd's RuntimeInfo with the OCI features of this runtime.

Owns: the list of features. Must not know: who asks (containerd 2.x caches it; the `hako features` verb
prints it).
"""

from __future__ import annotations

from shim.task import wire

RUNTIME_NAME = "io.containerd.hako.v2"
FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
HOOKS = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
NAMESPACES = ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"]
MOUNT_OPTIONS = [
    "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "iversion",
    "lazytime", "loud", "mand", "noatime", "nodev", "nodiratime", "noexec", "noiversion",
    "nolazytime", "nomand", "norelatime", "nostrictatime", "nosuid", "nosymfollow", "private",
    "ratime", "rbind", "rdev", "rdiratime", "relatime", "remount", "rexec", "rnoatime", "rnodev",
    "rnodiratime", "rnoexec", "rnorelatime", "rnostrictatime", "rnosuid", "rnosymfollow", "ro",
    "rprivate", "rrelatime", "rro", "rrw", "rshared", "rslave", "rstrictatime", "rsuid",
    "rsymfollow", "runbindable", "rw", "shared", "silent", "slave", "strictatime", "suid",
    "symfollow", "sync", "tmpcopyup", "unbindable",
]  # fmt: skip


def features() -> dict[str, object]:
    """OCI runtime-spec features (features.md of runtime-spec 1.1) of what runs in the guest."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": HOOKS,
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": NAMESPACES,
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": True},
            "seccomp": {"enabled": True},
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
    }


def runtime_info(version: str) -> bytes:
    """Serialized containerd.runtime.v1 RuntimeInfo {1 name, 2 version, 4 features}."""
    import json

    envelope = wire.blob(1, FEATURES_URL) + wire.blob(2, json.dumps(features()))
    return wire.blob(1, RUNTIME_NAME) + wire.blob(2, wire.blob(1, version)) + wire.blob(4, envelope)
