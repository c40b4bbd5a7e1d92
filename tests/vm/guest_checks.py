"""Runs as /init of a test guest: checks of what only a real guest kernel shows, one console line each.

Owns nothing but the checks; tests/vm/test_init_guest.py boots it and turns the lines into test results.
Every function called check_* is one check; it passes when it returns and fails with what it raises.
"""

from __future__ import annotations

import errno
import os
import signal
import time
import traceback

from agent import cgroups, guest, init, network, seccomp, storage
from agent.api import agent_pb2, jsonmap, oci_pb2
from agent.cgroups import Cgroup
from agent.errors import StepError
from agent.guest import copyfile, metrics
from agent.linux import bpf, cgroupfs, procfs, syscalls
from agent.linux.loop import Loop
from tests.framework import checks
from tests.framework.checks import NotHere, expect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


def resources(config: dict[str, Any]) -> oci_pb2.LinuxResources:
    """OCI JSON as the agent gets it."""
    filled = oci_pb2.LinuxResources()
    jsonmap.fill(filled, config)
    return filled


def require(condition: bool) -> None:
    """A condition; the traceback on the console shows which."""
    if not condition:
        raise AssertionError("does not hold")


def child(work: Callable[[], int | None], cgroup: Cgroup | None = None) -> int:
    """Pid of a forked child that does `work` (inside the cgroup) and exits with its answer."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.close(writer)
            os.read(reader, 1)
            status = work() or 0
        except OSError as error:
            status = error.errno or 98
        except BaseException:  # noqa: BLE001 - a check's child says why it failed
            traceback.print_exc()
        os._exit(status)
    os.close(reader)
    if cgroup is not None:
        cgroup.add(pid)
    os.close(writer)
    return pid


def result(pid: int) -> int:
    """Exit status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Made:
    """A cgroup that is removed at the end of the with block."""

    def __init__(self, path: str, config: dict[str, Any]) -> None:
        self.cgroup = Cgroup(path)
        self.cgroup.create(resources(config))

    def __enter__(self) -> Cgroup:
        return self.cgroup

    def __exit__(self, *_: object) -> None:
        self.cgroup.remove()
        if os.path.exists(self.cgroup.directory):
            raise AssertionError("the cgroup is still there")


# --- init -------------------------------------------------------------------------------------------------


def check_mounts() -> None:
    """Everything that containers and the agent need is mounted, with its type."""
    found = {mount.point: mount.fstype for mount in procfs.mounts()}
    wanted = {
        "/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs", "/dev/pts": "devpts", "/dev/shm": "tmpfs",
        "/dev/mqueue": "mqueue", "/run": "tmpfs", "/tmp": "tmpfs", "/sys/fs/cgroup": "cgroup2",
    }  # fmt: skip
    expect({point: found.get(point) for point in wanted}, wanted)
    expect(os.readlink("/dev/fd"), "/proc/self/fd")


def check_root_can_be_left() -> None:
    """pivot_root works in a new mount namespace: from erofs, and from an initramfs after init's move."""

    def pivot() -> int:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
        syscalls.mount("tmpfs", "/mnt", "tmpfs", 0)
        os.chdir("/mnt")
        syscalls.pivot_root(".", ".")
        syscalls.umount2(".", syscalls.MNT_DETACH)
        return len(os.listdir("/"))

    expect(result(child(pivot)), 0)


def check_cgroup_root() -> None:
    """All controllers are passed to the root's children, and the agent sits in a leaf."""
    there = set(cgroupfs.read(cgroups.ROOT, "cgroup.controllers").split())
    passed = set(cgroupfs.read(cgroups.ROOT, "cgroup.subtree_control").split())
    expect(passed, there)
    expect({"cpu", "cpuset", "io", "memory", "pids", "hugetlb"} - there, set())
    expect(procfs.read("self/cgroup").strip(), "0::/hako-agent")
    options = next(line for line in procfs.read("mounts").splitlines() if " cgroup2 " in line)
    require("nsdelegate" in options)
    expect(cgroupfs.read(init.AGENT_CGROUP, "memory.low"), str(init.AGENT_MEMORY))


def check_loopback() -> None:
    """lo is up with its addresses."""
    lo = next(link for link in network.list_interfaces().Interfaces if link.name == "lo")
    require("127.0.0.1" in [address.address for address in lo.IPAddresses])


def check_limits_and_names() -> None:
    """Open files, host name, standard streams."""
    limit = next(line for line in procfs.read("self/limits").splitlines() if line.startswith("Max open files"))
    expect(limit.split()[3], str(init.OPEN_FILES))
    expect(os.uname().nodename, init.HOSTNAME)
    for fd in (0, 1, 2):
        os.fstat(fd)


# --- cgroups ----------------------------------------------------------------------------------------------

EVERYTHING = {
    "cpu": {"shares": 2048, "quota": 50000, "period": 100000, "burst": 10000, "cpus": "0", "mems": "0"},
    "memory": {"limit": 64 << 20, "reservation": 16 << 20, "swap": 64 << 20},
    "pids": {"limit": 50},
    "blockIO": {"weight": 500},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
    "unified": {"memory.high": str(48 << 20), "cgroup.max.depth": "4"},
}


def check_every_limit_reaches_its_file() -> None:
    """The kernel takes each converted value and shows it."""
    with Made("/kubepods/pod1/limits", EVERYTHING) as cgroup:
        wanted = {
            "cpu.weight": "79", "cpu.max": "50000 100000", "cpu.max.burst": "10000", "cpuset.cpus": "0",
            "cpuset.mems": "0", "memory.max": str(64 << 20), "memory.low": str(16 << 20),
            "memory.high": str(48 << 20), "pids.max": "50", "hugetlb.2MB.max": str(4 << 20),
            "cgroup.max.depth": "4",
        }  # fmt: skip
        expect({name: cgroupfs.read(cgroup.directory, name) for name in wanted}, wanted)
        expect(cgroupfs.read_if_there(cgroup.directory, "memory.oom.group"), "0")


def check_update_changes_limits_in_any_direction() -> None:
    """Quota below the burst, period alone, idle and back, unlimited."""
    with Made("/update", EVERYTHING) as cgroup:
        cgroup.apply(resources({"cpu": {"quota": 5000, "period": 100000, "burst": 1000}}))
        cgroup.apply(resources({"cpu": {"period": 50000}}))
        expect(cgroupfs.read(cgroup.directory, "cpu.max"), "5000 50000")
        cgroup.apply(resources({"cpu": {"quota": -1}}))
        cgroup.apply(resources({"cpu": {"idle": 1}}))
        cgroup.apply(resources({"cpu": {"idle": 0, "shares": 1024}}))
        expect(cgroupfs.read(cgroup.directory, "cpu.weight"), "39")
        cgroup.apply(resources({"memory": {"limit": -1}, "pids": {"limit": -1}}))
        expect([cgroupfs.read(cgroup.directory, n) for n in ("memory.max", "pids.max")], ["max", "max"])


def check_io_limits_of_a_disk() -> None:
    """io.max takes the guest's disk, and its removal."""
    disk = os.stat("/dev/vdb").st_rdev
    device = {"major": os.major(disk), "minor": os.minor(disk), "rate": 1 << 20}
    with Made("/io", {"blockIO": {"throttleReadBpsDevice": [device]}}) as cgroup:
        shown = cgroupfs.nested(cgroupfs.read(cgroup.directory, "io.max"))
        expect(shown[f"{device['major']}:{device['minor']}"]["rbps"], 1 << 20)
        cgroup.apply(resources({"blockIO": {"throttleReadBpsDevice": [{**device, "rate": 0}]}}))
        expect(cgroupfs.read(cgroup.directory, "io.max"), "")


def check_pids_limit_holds() -> None:
    """The process beyond the limit cannot be made."""

    def fork_many() -> int:
        for _ in range(20):
            if os.fork() == 0:
                time.sleep(30)
                os._exit(0)
        return 0

    with Made("/pids", {"pids": {"limit": 8}}) as cgroup:
        expect(result(child(fork_many, cgroup)), errno.EAGAIN)
        expect(len(cgroup.pids()), 7)


def check_oom_kill_is_counted_and_told() -> None:
    """A process beyond the memory limit dies, and the watcher hears of it through the loop."""
    loop, told = Loop(), []
    with Made("/oom", {"memory": {"limit": 16 << 20, "swap": 16 << 20}}) as cgroup:

        def notice() -> None:
            told.append(cgroup.oom_kills())
            loop.stop()

        cgroup.watch_oom(loop, notice)
        pid = child(lambda: len(bytearray(64 << 20)) and 0, cgroup)
        loop.call_later(20, loop.stop)
        loop.run()
        expect(result(pid), -signal.SIGKILL)
        expect(told, [1])
        expect(cgroup.stats().memory_stats.stats["events.oom_kill"], 1)


def check_throttling_is_counted() -> None:
    """A tight quota throttles, and the statistics say so."""

    def burn() -> int:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        return 0

    with Made("/throttle", {"cpu": {"quota": 10000, "period": 100000}}) as cgroup:
        start = time.monotonic()
        expect(result(child(burn, cgroup)), 0)
        stats = cgroup.stats()
        require(time.monotonic() - start > 0.5)
        require(stats.cpu_stats.throttling_data.throttled_periods > 0)
        require(stats.cpu_stats.cpu_usage.total_usage > 90_000_000)
        require(stats.memory_stats.usage.max_usage > 0)
        require("inactive_file" in stats.memory_stats.stats)


def check_container_may_split_its_cgroup() -> None:
    """After the container has moved down and enabled controllers, an exec joins beside its init."""
    with Made("/split", {}) as cgroup:
        first = child(lambda: time.sleep(60), cgroup)
        os.mkdir(cgroup.directory + "/init")
        cgroupfs.write(cgroup.directory + "/init", "cgroup.procs", str(first))
        cgroupfs.write(cgroup.directory, "cgroup.subtree_control", "+memory +pids")
        second = child(lambda: time.sleep(60))
        cgroup.add(second, beside=first)
        third = child(lambda: time.sleep(60), cgroup)
        expect(cgroupfs.processes_of(cgroup.directory + "/init"), [first, second, third])
        cgroup.freeze()
        cgroup.thaw()
        cgroup.kill()
        expect({result(pid) for pid in (first, second, third)}, {-signal.SIGKILL})


def check_container_cannot_raise_its_own_limit() -> None:
    """nsdelegate: from inside the cgroup namespace the root's limits are read-only, its children are not.
    """

    def inside() -> int:
        syscalls.unshare(syscalls.CLONE_NEWCGROUP | syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
        syscalls.mount("cgroup2", "/mnt", "cgroup2", 0)
        os.mkdir("/mnt/below")
        try:
            cgroupfs.write("/mnt", "memory.max", "max")
        except PermissionError:
            return 0
        return 1

    with Made("/delegate", {"memory": {"limit": 64 << 20}}) as cgroup:
        expect(result(child(inside, cgroup)), 0)
        expect(cgroupfs.read(cgroup.directory, "memory.max"), str(64 << 20))


def check_devices_are_denied_by_the_kernel() -> None:
    """The guest's own disk cannot be opened from a container's cgroup, until a rule allows it."""
    number = os.stat("/dev/vda").st_rdev

    def opening(mode: int) -> Callable[[], int]:
        def work() -> int:
            path = f"/dev/check-disk{os.getpid()}"
            os.mknod(path, 0o600 | 0o060000, number)
            os.close(os.open(path, mode))
            return 0

        return work

    with Made("/devices", {"devices": [{"allow": False, "access": "rwm"}]}) as cgroup:
        expect(result(child(opening(os.O_RDONLY), cgroup)), errno.EPERM)
        rule = {
            "allow": True,
            "type": "b",
            "major": os.major(number),
            "minor": os.minor(number),
            "access": "r",
        }
        cgroup.apply(resources({"devices": [{"allow": False, "access": "rwm"}, rule]}))
        expect(result(child(opening(os.O_RDONLY), cgroup)), 0)
        expect(result(child(opening(os.O_RDWR), cgroup)), errno.EPERM)


def check_biggest_device_program_loads() -> None:
    """A long rule list passes the verifier."""
    rules: list[bpf.Rule] = [(bool(n % 2), n % 3, n, n % 7 - 1, 1 + n % 7) for n in range(1, 300)]
    os.close(bpf.load_device_program(bpf.device_program(rules, default=False)))


# --- seccomp ----------------------------------------------------------------------------------------------


def check_seccomp_filter_holds() -> None:
    """A compiled profile is taken by the guest's kernel and enforced."""
    config = oci_pb2.LinuxSeccomp()
    refuse = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOTTY}
    jsonmap.fill(config, {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refuse]})
    program, flags = seccomp.compile(config), seccomp.flags(config)

    def inside() -> int:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.install(program, flags)
        os.mkdir("/tmp/never")
        return 0

    expect(result(child(inside)), errno.ENOTTY)


# --- storage ----------------------------------------------------------------------------------------------


def check_ephemeral_storage() -> None:
    """A tmpfs of its size, then bigger; huge pages are set aside."""
    point = "/run/kata-containers/sandbox/ephemeral/cache"
    storage.mount(agent_pb2.Storage(driver="ephemeral", fstype="tmpfs", mount_point=point, options=["size=1M"]))
    storage.update([agent_pb2.Storage(driver="ephemeral", mount_point=point, options=["size=2M"])])
    expect(os.statvfs(point).f_blocks * 4096, 2 << 20)
    require(storage.unmount(point))
    pages = agent_pb2.Storage(driver="ephemeral", fstype="hugetlbfs", source="nodev", mount_point=point,
                              options=["pagesize=2M", "size=4M"])  # fmt: skip
    storage.mount(pages)
    expect(open("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages").read().strip(), "2")
    require(storage.unmount(point))


def check_disk_by_pci_path() -> None:
    """A disk that is there at boot, by its slot."""
    point = "/run/kata-containers/volume"
    storage.mount(agent_pb2.Storage(driver="blk", source="10", fstype="erofs", mount_point=point, options=["ro"]))
    with open(point + "/hello") as file:
        expect(file.read(), "from a disk")
    require(storage.unmount(point))


def check_plugged_disk_is_awaited() -> None:
    """A disk behind a port that is plugged while the agent waits for it."""
    print("PLUG late", flush=True)
    point = "/run/kata-containers/late"
    start = time.monotonic()
    wanted = agent_pb2.Storage(driver="blk", source="11/00", fstype="erofs", mount_point=point, options=["ro"])
    storage.mount(wanted, 10)
    print(f"plugged disk after {time.monotonic() - start:.3f} s", flush=True)
    with open(point + "/hello") as file:
        expect(file.read(), "from a disk")


def check_plugged_share_is_awaited() -> None:
    """virtio-fs whose device is plugged while the agent waits: as in a clone after its restore."""
    print("PLUG share", flush=True)
    point = "/run/kata-containers/shared/containers"
    start = time.monotonic()
    storage.mount(agent_pb2.Storage(driver="virtio-fs", source="kataShared", mount_point=point, options=["nodev"]), 10)
    print(f"plugged share after {time.monotonic() - start:.3f} s", flush=True)
    with open(point + "/hello") as file:
        expect(file.read(), "from a disk")
    mount = next(mount for mount in procfs.mounts() if mount.point == point)
    expect((mount.fstype, "nodev" in mount.options), ("virtiofs", True))
    local = f"{point}/c1/rootfs/local/scratch"
    storage.mount(agent_pb2.Storage(driver="local", mount_point=local, options=["mode=0777"]))
    copyfile.copy(agent_pb2.CopyFileRequest(path=f"{point}/c1/etc/hosts", file_size=4, file_mode=0o100644, data=b"text"))
    expect(sorted(os.listdir(f"{point}/c1")), ["etc", "rootfs"])
    require(storage.unmount(point))


def check_missing_share_is_named() -> None:
    """virtio-fs without a device: the error has the tag, after the deadline and not before."""
    start = time.monotonic()
    wanted = agent_pb2.Storage(driver="virtio-fs", source="noTag", mount_point="/run/kata-containers/shared/containers")
    try:
        storage.mount(wanted, 0.3)
    except StepError as error:
        require("noTag" in str(error))
    else:
        raise AssertionError("mounted")
    require(0.3 <= time.monotonic() - start < 3)


# --- the machine ------------------------------------------------------------------------------------------


def check_dns_on_the_read_only_root() -> None:
    """resolv.conf can be set although /etc is read-only."""
    network.write_dns(["nameserver 192.0.2.1"])
    with open("/etc/resolv.conf") as file:
        expect(file.read(), "nameserver 192.0.2.1\n")


def check_clock_and_random_pool() -> None:
    """The clock takes the host's time; the pool is reseeded with credit."""
    guest.set_clock(1_900_000_000, 5)
    require(0 <= time.time() - 1_900_000_000 < 10)
    guest.reseed(os.urandom(1500))


def check_details_and_metrics() -> None:
    """The block size of hot-pluggable memory, and Kata's metric families."""
    request = agent_pb2.GuestDetailsRequest(mem_block_size=True)
    answer = guest.details(request, agent_pb2.AgentDetails())
    expect(answer.mem_block_size_bytes, 128 << 20)
    require('kata_guest_meminfo{item="mem_total"}' in metrics.text())
    guest.online(wait=False, cpus=0, cpu_only=False)


def check_cpu_is_brought_back() -> None:
    """An offline CPU comes up, and the wait for it ends at once."""
    with open("/sys/devices/system/cpu/cpu1/online", "w") as file:
        file.write("0")
    expect(os.sysconf("SC_NPROCESSORS_ONLN"), 1)
    guest.online(wait=True, cpus=1, cpu_only=True)
    expect(os.sysconf("SC_NPROCESSORS_ONLN"), 2)


def check_plugged_memory_comes_into_use() -> None:
    """OnlineCPUMem brings up what the kernel has found."""
    before = procfs.keyed(procfs.read("meminfo"))["MemTotal"]
    print("PLUG memory", flush=True)
    deadline = time.monotonic() + 10
    while procfs.keyed(procfs.read("meminfo"))["MemTotal"] - before != 128 << 10:
        require(time.monotonic() < deadline)
        guest.online(wait=False, cpus=0, cpu_only=False)


def check_plugged_cpu_comes_into_use() -> None:
    """OnlineCPUMem waits for a CPU that is being plugged, by its uevent."""
    if cgroupfs.read("/sys/devices/system/cpu", "possible") != "0-2":
        raise NotHere("Linux since 2025 plugs no CPUs where it knows no hypervisor, and it does not know QEMU without KVM")
    print("PLUG cpu", flush=True)
    guest.online(wait=True, cpus=1, cpu_only=True, seconds=10)
    expect(os.sysconf("SC_NPROCESSORS_ONLN"), 3)
    with Made("/cpuset", {}) as cgroup:
        expect(cgroupfs.read(cgroup.directory, "cpuset.cpus.effective"), "0-2")


def main() -> None:
    """PID 1."""
    checks.run_all(globals())
