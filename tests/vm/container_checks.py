"""Runs as /init of a test guest: containers in a real guest kernel, with cgroup v2 and all privileges.

Owns nothing but the checks; tests/vm/test_container_guest.py boots it and turns the lines into test
results. Every function called check_* is one check; it passes when it returns and fails with what it
raises.
"""

from __future__ import annotations

import errno
import gc
import os
import statistics
import time
import traceback
from pathlib import Path

from agent.api import jsonmap, oci_pb2
from agent.linux import syscalls
from agent.process.stdio import StdioPlan
from tests.framework import checks
from tests.framework.box import Guest, Streams, default_mounts
from tests.framework.checks import expect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DIRECTORY = Path("/run/box")
CGROUP_MOUNT = {
    "destination": "/sys/fs/cgroup",
    "type": "cgroup",
    "source": "cgroup",
    "options": ["nosuid", "ro"],
}
MAPPING = [{"containerID": 0, "hostID": 100000, "size": 65536}]
_guest: list[Guest] = []


def guest() -> Guest:
    """One for all checks."""
    if not _guest:
        DIRECTORY.mkdir()
        _guest.append(Guest(DIRECTORY, "/sys/fs/cgroup"))
    return _guest[0]


def absent(path: str) -> None:
    """Nothing is at `path`."""
    if os.path.exists(path):
        raise AssertionError(f"{path} is there")


def spaces(*kinds: str) -> list[dict[str, str]]:
    """New namespaces."""
    return [{"type": kind} for kind in kinds]


def limits(**resources: Any) -> dict[str, Any]:
    """linux.resources"""
    return {"resources": resources}


# --- before init: the first root --------------------------------------------------------------------------


def on_the_first_root() -> None:
    """A container where nobody has left the initramfs: pivot_root refuses, the rootfs is moved over "/"."""
    pid = os.fork()
    if pid == 0:
        try:
            _without_init()
        except BaseException:  # noqa: BLE001 - told by the status
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    expect(os.waitpid(pid, 0)[1], 0)


def _without_init() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("proc", "/proc", "proc", 0)
    syscalls.mount("devtmpfs", "/dev", "devtmpfs", 0)
    syscalls.mount("tmpfs", "/run", "tmpfs", 0)
    box = Guest(Path("/run"))
    root = os.open("/", os.O_RDONLY)
    try:
        syscalls.pivot_root(".", ".")
        raise AssertionError("this root can be pivoted from: the check checks nothing")
    except OSError as error:
        expect(error.errno, errno.EINVAL)
    os.close(root)
    result = box.run("ls /; cat /proc/self/mountinfo | cut -d' ' -f5; cd ..; cd ..; ls -d usr")
    expect(result.status, 1)
    names = result.out.split()
    if "init" in names or "bin" not in names:
        raise AssertionError(f"the initramfs is still visible: {names}")


# --- with init --------------------------------------------------------------------------------------------


def check_plain_container() -> None:
    """Identity, capabilities, hostname, mounts."""
    script = (
        "id -u; hostname; grep CapEff /proc/self/status; cat /proc/self/cgroup; ls /sys/fs/cgroup | head -1"
    )
    result = guest().run(script, mounts=[*default_mounts(), CGROUP_MOUNT])
    expect(result.err, "")
    expect(result.out.split()[:4], ["0", "box", "CapEff:", "00000000a80425fb"])
    expect(result.out.split()[4], "0::/")


def check_limits_are_in_the_containers_cgroup() -> None:
    """memory.max, pids.max and cpu.max as seen from inside."""
    script = "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max"
    linux = limits(memory={"limit": 67108864}, pids={"limit": 20}, cpu={"quota": 50000, "period": 100000})
    result = guest().run(script, linux=linux, mounts=[*default_mounts(), CGROUP_MOUNT])
    expect(result.out.split(), ["67108864", "20", "50000", "100000"])


def check_small_memory_limit_is_enough_to_start() -> None:
    """Docker's least, 6 MiB: what the agent's child needs before its program must fit."""
    expect(guest().run("echo fits", linux=limits(memory={"limit": 6 << 20})).out, "fits\n")


def check_too_small_memory_limit_is_said() -> None:
    """The error says that the child was killed, and why it may have been."""
    try:
        guest().run("true", linux=limits(memory={"limit": 200 << 10}))
    except Exception as error:
        if "memory limit too low?" not in str(error):
            raise
    else:
        raise AssertionError("it started")


def check_out_of_memory_is_137() -> None:
    """The kernel's kill is an exit by SIGKILL."""
    linux = limits(memory={"limit": 32 << 20, "swap": 32 << 20})
    expect(guest().run(["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"], linux=linux).status, 137)


def check_pids_limit() -> None:
    """A fork bomb stays in its box."""
    result = guest().run("for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait", linux=limits(pids={"limit": 4}))
    if "can't fork" not in result.err:
        raise AssertionError(result)


def check_devices_are_denied() -> None:
    """A node can be made and not be opened; the default ones can."""
    result = guest().run("mknod /dev/kmsg2 c 1 11; head -c 1 /dev/kmsg2; head -c 2 /dev/zero | wc -c")
    expect(result.out, "2\n")
    if "Operation not permitted" not in result.err:
        raise AssertionError(result.err)


def check_negative_oom_score_and_raised_limits() -> None:
    """What needs privileges that a plain host has and a sandbox may lack."""
    process = {"oomScoreAdj": -500, "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1 << 20, "hard": 1 << 20}]}
    result = guest().run("cat /proc/self/oom_score_adj; ulimit -n", process=process)
    expect(result.out.split(), ["-500", str(1 << 20)])


def check_terminal() -> None:
    """tty, size, console."""
    box = guest()
    process = {"terminal": True, "consoleSize": {"height": 40, "width": 120}}
    container = box.container(box.spec("tty; stty size; ls -l /dev/console | cut -c1", process=process))
    streams = Streams(terminal=True, keep_stdin=True)
    container.create(streams.plan())
    container.start()
    expect(streams.finish(box, container.init).out.split(), ["/dev/pts/0", "40", "120", "c"])
    container.remove()


def check_exec_pause_kill() -> None:
    """exec joins, a paused container dies by SIGKILL, and nothing is left."""
    box = guest()
    container = box.started("sleep 100 & sleep 100")
    result = box.exec(container, "hostname; cat /proc/self/cgroup")
    expect(result.out.split(), ["box", "0::/"])
    container.pause()
    expect(len(container.pids()), 2)
    container.signal("", 9)
    expect(box.wait(container.init), 137)
    container.remove()
    absent(container.cgroup.directory)


def check_user_namespace() -> None:
    """Mapped ids, devices, its own cgroup tree, mounts inside."""
    box = guest()
    root = box.rootfs("mapped")
    for directory, _, names in os.walk(root):
        os.chown(directory, 100000, 100000)
        for name in names:
            os.chown(os.path.join(directory, name), 100000, 100000, follow_symlinks=False)
    kinds = spaces("user", "pid", "mount", "ipc", "uts", "network", "cgroup")
    linux = {"namespaces": kinds, "uidMappings": MAPPING, "gidMappings": MAPPING}
    mount = dict(CGROUP_MOUNT, options=["nosuid"])
    admin = ["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]
    caps = {"bounding": admin, "permitted": admin, "effective": admin}
    script = (
        "cat /proc/self/uid_map; echo x > /dev/null; mkdir /sys/fs/cgroup/child && echo made; "
        "mount -t tmpfs x /mnt && echo mounted"
    )
    mounts = [*default_mounts(), mount]
    result = box.run(script, rootfs=root, linux=linux, mounts=mounts, process={"capabilities": caps})
    expect(result.err, "")
    expect(result.out.split(), ["0", "100000", "65536", "made", "mounted"])


def check_time_namespace() -> None:
    """The clock is ahead from the first instruction."""
    kinds = spaces("pid", "mount", "time")
    linux = {"namespaces": kinds, "timeOffsets": {"boottime": {"secs": 1000000}}}
    result = guest().run("cut -d. -f1 /proc/uptime", linux=linux)
    if not 1000000 <= int(result.out) < 1010000:
        raise AssertionError(result.out)


def check_shared_pid_namespace() -> None:
    """The second container's pid 1 is the first's init."""
    box = guest()
    pause = box.started(["sleep", "1000"])
    spec = box.spec("cat /proc/1/cmdline")
    container = box.container(spec, extra_pidns=pause.namespace_path("pid"))
    streams = Streams()
    container.create(streams.plan())
    container.start()
    expect(streams.finish(box, container.init).out, "sleep\x001000\x00")
    container.remove()
    pause.remove()


def check_the_agents_program_cannot_be_overwritten() -> None:
    """Even with every capability and the guest's pid namespace: the interpreter is on a read-only root."""
    names = [f"CAP_{name}" for name in ("SYS_PTRACE", "DAC_OVERRIDE", "SYS_ADMIN", "DAC_READ_SEARCH")]
    caps = {"bounding": names, "permitted": names, "effective": names}
    result = guest().run(
        "echo x > /proc/1/exe", linux={"namespaces": spaces("mount", "uts")}, process={"capabilities": caps}
    )
    if not any(text in result.err for text in ("Read-only file system", "Text file busy")):
        raise AssertionError(result)


def check_fifty_megabytes_each_way() -> None:
    """Through cat, in an emulated guest; the time is on the console."""
    box = guest()
    seed = os.urandom(1 << 20)
    container = box.container(box.spec(["cat"]))
    streams = Streams(seed * 50)
    container.create(streams.plan())
    began = time.monotonic()
    container.start()
    result = streams.finish(box, container.init, 60)
    print(f"TIMING 50 MB each way through cat: {time.monotonic() - began:.1f} s", flush=True)
    expect(len(result.out.encode("utf-8", "surrogateescape")), 50 << 20)
    container.remove()


def check_warm_start_is_fast() -> None:
    """create + start + exit of busybox true, and exec of it, in a warm agent; the medians are on the
    console.
    """
    box = guest()
    gc.collect()
    gc.freeze()
    created, total, executed = [], [], []
    for _ in range(25):
        container = box.container(box.spec(["true"], mounts=[*default_mounts(), CGROUP_MOUNT]))
        began = time.perf_counter()
        container.create(StdioPlan())
        created.append(time.perf_counter() - began)
        container.start()
        box.wait(container.init)
        total.append(time.perf_counter() - began)
        container.remove()
    container = box.started(["sleep", "1000"])
    process = oci_pb2.Process()
    jsonmap.fill(process, {"args": ["true"], "cwd": "/", "env": ["PATH=/bin"]})
    for number in range(25):
        began = time.perf_counter()
        box.wait(container.exec(f"fast-{number}", process, StdioPlan()))
        executed.append(time.perf_counter() - began)
        container.forget(f"fast-{number}")
    container.remove()
    figures = [f"{statistics.median(times) * 1000:.1f}" for times in (created, total, executed)]
    print("TIMING median ms: create {}, create+start+exit {}, exec+exit {}".format(*figures), flush=True)
    if statistics.median(total) > 0.3:
        raise AssertionError(f"{figures} ms")


def check_nothing_is_left() -> None:
    """After all checks: no process, no cgroup, no mount but the guest's own."""
    alive = [name for name in os.listdir("/proc") if name.isdigit() and os.path.exists(f"/proc/{name}/exe")]
    processes = [name for name in alive if name != "1" and _has_program(name)]
    expect(processes, [])
    absent("/sys/fs/cgroup/pod")
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    expect([point for point in mounts if point.startswith(str(DIRECTORY))], [])


def _has_program(pid: str) -> bool:
    """False for the kernel's own threads."""
    try:
        return bool(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return False


def main() -> None:
    """PID 1."""
    checks.run_all(globals(), first=on_the_first_root)
