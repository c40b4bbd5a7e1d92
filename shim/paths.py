"""Where hako keeps things on the host: the one place that spells a path.

    /run/hako/pods/NAMESPACE/SANDBOX/   state of one pod: state.json, lock, share/ (what the guest may see)
    /run/hako/s/HASH                    its ttrpc socket; HASH: 40 hex digits of namespace and id,
    /run/hako/s/HASH.d/                 its daemons' sockets   because a socket's path is limited
    /run/hako/pool/NAME/                a VM that waits for a pod, or has got one (shim/sandbox/spare.py)
    /var/cache/hako/{kernel,image,oci,probe,seccomp,template,tools}
    /etc/hako/configuration.toml        then PREFIX/lib/hako/configuration.toml

HAKO_STATE_DIR, HAKO_CACHE_DIR and HAKO_CONFIG move them (tests, private runs). All functions return absolute
host paths and create nothing. Imports only `os`, because `start` and `delete` load it.
"""

from __future__ import annotations

import os

ANSWER_FILE = "hako-deleted"  # in a bundle, see shim/task/deleted.py
SOCKET_PATH_LIMIT = 107  # sun_path is 108 bytes with its terminating zero (unix(7))


def state_root() -> str:
    """Directory of everything that must not survive a reboot, 0711 root (daemons pass through it)."""
    return os.path.abspath(os.environ.get("HAKO_STATE_DIR") or "/run/hako")


def cache_root() -> str:
    """Directory of everything that can be made again."""
    return os.path.abspath(os.environ.get("HAKO_CACHE_DIR") or "/var/cache/hako")


def cache_dir(kind: str) -> str:
    """Cache of one kind: kernel, image, oci, probe, tools, template."""
    return os.path.join(cache_root(), kind)


def is_overlay(path: str) -> bool:
    """Whether a host path is such as shim/image/overlay.py mounts for one container, as nobody else does."""
    directory, name = os.path.split(path)
    return name == "merged" and os.path.dirname(directory) == os.path.join(cache_dir("oci"), "containers")


def pods_root() -> str:
    """Parent of the pods' state, one directory per namespace in it."""
    return os.path.join(state_root(), "pods")


def sandbox_dir(sandbox_id: str, namespace: str) -> str:
    """State directory of a pod. `namespace`: containerd's; "default" from CRI-O, "hako" from `hako`."""
    return os.path.join(pods_root(), _component(namespace), _component(sandbox_id))


def spares_root() -> str:
    """Parent of the state of VMs that were made before their pods."""
    return os.path.join(state_root(), "pool")


def spare_dir(name: str) -> str:
    """State directory of one of them."""
    return os.path.join(spares_root(), _component(name))


def pods() -> list[tuple[str, str]]:
    """Namespace and id of every pod that has a state directory, in order; one that goes meanwhile may be missing."""
    root = pods_root()
    return [(namespace, sandbox) for namespace in entries(root) for sandbox in entries(os.path.join(root, namespace))]


def entries(directory: str) -> list[str]:
    """Names in a directory, sorted; none where it is not there."""
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def socket_dir() -> str:
    """Directory of the pods' ttrpc sockets."""
    return os.path.join(state_root(), "s")


def task_socket(sandbox_id: str, namespace: str) -> str:
    """ttrpc socket of a pod's process."""
    return os.path.join(socket_dir(), _hash(namespace, sandbox_id))


def daemon_socket_dir(sandbox_id: str, namespace: str) -> str:
    """Directory, owned by the unprivileged user, for sockets that a pod's daemons insist on making."""
    return task_socket(sandbox_id, namespace) + ".d"


def config_candidates() -> list[str]:
    """Configuration files in order of preference; the first that exists is the one."""
    override = os.environ.get("HAKO_CONFIG")
    if override:
        return [os.path.abspath(override)]
    return ["/etc/hako/configuration.toml", os.path.join(install_root(), "configuration.toml")]


def install_root() -> str:
    """Directory that holds the `shim` package: PREFIX/lib/hako when installed, else the checkout."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _component(name: str) -> str:
    """`name` as one path component; refuses what would leave the directory."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"not a usable id: {name!r}")
    return name


def _hash(namespace: str, sandbox_id: str) -> str:
    from shim.light import sha256_hex

    return sha256_hex(f"{namespace}/{sandbox_id}".encode())[:40]
