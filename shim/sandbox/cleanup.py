"""Take away what a dead pod left on the host, from its state file alone.

Owns: the order (processes, mounts, cgroups, network, files) and that nothing is followed or deleted through
a mount. Must not know: why the pod died. Called by `delete` once the pod's process is gone (its lock is
free), and by the `hako` command. Light imports; idempotent; every step is tried even if another fails.

Children of the pod process die with it (PDEATHSIG), so processes are found only in the moment between. They
are ended by pid and start time, never by name.
"""

from __future__ import annotations

import os
import time

from shim.sandbox import store

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any
else:
    import _signal as signal  # the signal module would bring in enum: 4 ms of every delete

LOOK = 0.002  # an engine waits for us, and we for a pod process that is about to end
DEATH = 2.0  # seconds that a killed process may take to go
LEAVING = 4.0  # and one that was on its way into a cgroup; containerd gives `delete` five


def clean_up(directory: str, socket_path: str, container_id: str = "") -> int:
    """Remove everything of the pod whose state is in `directory`; host pid of a container's stub, 0 if
    unknown.
    """
    lock = _lock(directory)
    if lock is None:  # alive after all, or gone already
        return 0
    state = store.read(directory) or {}
    pid = _stub_pid(state, container_id)
    _end_processes(state.get("processes", []))
    for entry in state.get("containers", {}).values():
        _unmount(entry.get("mounts", []))
    _unmount_below(directory)
    _remove_cgroups(state)
    _detach_network(state.get("network"))
    _remove_tree(directory)
    for path in (socket_path, *state.get("paths", [])):
        _remove_path(path)
    if state.get("spare"):  # its VM was made before it, and has a state of its own
        clean_up(state["spare"], "")
    os.close(lock)
    _remove_empty(os.path.dirname(directory))
    return pid


def _lock(directory: str) -> int | None:
    """The pod's lock; a process that was just killed keeps it for a moment."""
    deadline = time.monotonic() + DEATH
    while True:
        try:
            return store.take_lock(directory, os.O_CREAT)
        except FileNotFoundError:
            return None
        except OSError:
            if time.monotonic() > deadline:
                return None
            time.sleep(LOOK)


def _stub_pid(state: dict[str, Any], container_id: str) -> int:
    names = {f"stub of {container_id}"}
    return next((item["pid"] for item in state.get("processes", []) if item["name"] in names), 0)


def _end_processes(processes: list[dict[str, Any]]) -> None:
    ended = [item["pid"] for item in processes if kill(item["pid"], item["start_time"])]
    deadline = time.monotonic() + DEATH
    while any(store.start_time(pid) for pid in ended) and time.monotonic() < deadline:
        time.sleep(0.01)


def kill(pid: int, started: int) -> bool:
    """SIGKILL, if it is still this process; through a pidfd, so that no other can get it."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if store.start_time(pid) != started:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(pidfd)


def _unmount(paths: list[str]) -> None:
    from shim.sandbox.rootfs import unmount

    for path in reversed(paths):
        unmount(path)


def _unmount_below(directory: str) -> None:
    """Every mount in the tree, the youngest first (a mount is listed after the one it stands on)."""
    _unmount(mounts_below(directory))


def mounts_below(directory: str) -> list[str]:
    """Mount points in the tree under `directory` (host path), in the order of their making."""
    prefix = os.path.realpath(directory)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        points = [_unescaped(line.split(" ")[4]) for line in stream]
    return [point for point in points if point == prefix or point.startswith(prefix + "/")]


def _unescaped(text: str) -> str:
    r"""mountinfo writes space, tab, newline and backslash as \ooo (proc(5))."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def _remove_cgroups(state: dict[str, Any]) -> None:
    """A process that was just begun, and not yet written down, ends a moment after its parent."""
    containers = state.get("containers", {}).values()
    directories = [path for entry in containers for path in entry.get("cgroups", [])]
    deadline = time.monotonic() + LEAVING
    for path in (*directories, *state.get("cgroups", [])):
        while not _removed(path) and time.monotonic() < deadline:
            time.sleep(0.01)
    for path in state.get("cgroup_parents", []):
        _removed(path)  # unless another pod is there


def _removed(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:  # EBUSY: it has processes, or children that are somebody else's
        return False
    return True


def _detach_network(network: dict[str, Any] | None) -> None:
    """Redirects to our taps, in a namespace that outlived the pod."""
    if not network or not network.get("taps"):
        return
    from shim.errors import HakoError
    from shim.network import netns

    try:
        netns.detach(network["netns"], network["taps"])
    except HakoError:
        pass


def _remove_tree(directory: str) -> None:
    """The pod's directory, unless something is still mounted in it: deleting through a mount destroys data."""
    if mounts_below(directory):
        return
    import shutil

    shutil.rmtree(directory, ignore_errors=True)


def _remove_path(path: str) -> None:
    """A socket, or a directory of sockets."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            for name in os.listdir(path):
                os.unlink(os.path.join(path, name))
            os.rmdir(path)
        else:
            os.unlink(path)
    except OSError:
        pass


def _remove_empty(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError:
        pass
