"""From the OCI spec to the plan of a container and its process: pure decisions and refusals."""

from __future__ import annotations

import stat
from typing import Any

import pytest

from agent import capabilities, devices, namespaces, rlimits, rootfs, users
from agent.api import agent_pb2, jsonmap, oci_pb2
from agent.cgroups import NullCgroup
from agent.container import attributes, plan
from agent.errors import InvalidSpec, StepError, Unsupported
from agent.linux import syscalls


def _linux(**mapping: Any) -> oci_pb2.Linux:
    message = oci_pb2.Linux()
    jsonmap.fill(message, mapping)
    return message


def _process(**mapping: Any) -> oci_pb2.Process:
    message = oci_pb2.Process()
    jsonmap.fill(message, {"args": ["sh"], "cwd": "/", **mapping})
    return message


def _plan_process(container: plan.ProcessPlan | None = None, **mapping: Any) -> plan.ProcessPlan:
    return plan.plan_process(
        _process(**mapping), _linux(), seccomp_filter=(b"", 0), string_user=None, container=container
    )


def _plan_init(**mapping: Any) -> plan.InitPlan:
    spec = oci_pb2.Spec()
    jsonmap.fill(spec, {"root": {"path": "rootfs"}, "process": {"args": ["sh"], "cwd": "/"}, **mapping})
    return plan.plan_init("c1", spec, "/bundle", NullCgroup("/pod/c1", "/cg"), {}, None, None)


# --- capabilities -------------------------------------------------------------------------------------------


def test_capability_names_become_bits() -> None:
    """CAP_CHOWN is 0 and CAP_SYS_ADMIN is 21, in any case."""
    unknown: list[str] = []
    assert capabilities.mask(["CAP_CHOWN", "cap_sys_admin"], unknown) == 1 | 1 << 21
    assert not unknown


def test_unknown_capabilities_are_noted_and_grant_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that this kernel does not have must neither fail the container nor become another bit."""
    monkeypatch.setattr(capabilities, "_last", [3])
    unknown: list[str] = []
    assert capabilities.mask(["CAP_FOWNER", "CAP_SETUID", "CAP_NEW", "ALL"], unknown) == 1 << 3
    assert unknown == ["CAP_SETUID", "CAP_NEW", "ALL"]


def test_absent_capabilities_are_none() -> None:
    """As runc: a process without the field has no capability, an exec those of its container."""
    alone = _plan_process()
    assert alone.capabilities.bounding == alone.capabilities.effective == 0
    container = _plan_process(capabilities={"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"]})
    assert _plan_process(container).capabilities is container.capabilities
    assert _plan_process(container, capabilities={}).capabilities.bounding == 0


def test_sets_that_the_kernel_would_refuse_are_cut() -> None:
    """effective is within permitted; ambient within permitted and inheritable."""
    caps = capabilities.from_spec(
        _process(
            capabilities={
                "permitted": ["CAP_CHOWN", "CAP_KILL"],
                "effective": ["CAP_CHOWN", "CAP_SYS_ADMIN"],
                "inheritable": ["CAP_KILL"],
                "ambient": ["CAP_KILL", "CAP_CHOWN"],
            }
        ).Capabilities
    )
    assert (caps.effective, caps.ambient) == (1, 1 << 5)


# --- users --------------------------------------------------------------------------------------------------


def _lookup(monkeypatch: pytest.MonkeyPatch, identity: users.Identity, **files: str) -> users.User:
    monkeypatch.setattr(users, "_lines", lambda path: files.get(path.rpartition("/")[2], "").split("\n"))
    return users.resolve(identity, want_home=True)


PASSWD = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x:5\nuser:x:1000:1001::/home/user:/bin/sh\n"
GROUP = "root:x:0:\nstaff:x:50:user\n"


def test_numbers_need_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """uid and gid of the spec hold even where passwd says otherwise; only the home comes from there."""
    identity = users.Identity(1000, 7, [8, 9], 0o22)
    user = _lookup(monkeypatch, identity, passwd=PASSWD)
    assert (user.uid, user.gid, user.groups, user.home) == (1000, 7, [8, 9], "/home/user")


def test_home_is_the_root_where_nobody_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """As runc sets HOME."""
    assert _lookup(monkeypatch, users.Identity(4711, 0, [], 0)).home == "/"


def test_string_user_is_looked_up_in_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of Kata's StringUser win over the numbers, numbers in it stay numbers."""
    names = agent_pb2.StringUser(uid="user", gid="", additionalGids=["staff", "77"])
    identity = users.from_spec(oci_pb2.User(UID=5, GID=6), names)
    user = _lookup(monkeypatch, identity, passwd=PASSWD, group=GROUP)
    assert (user.uid, user.gid, user.groups) == (1000, 1001, [50, 77])


def test_username_with_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """OCI's username: "user:group" names both."""
    identity = users.from_spec(oci_pb2.User(Username="user:staff"))
    user = _lookup(monkeypatch, identity, passwd=PASSWD, group=GROUP)
    assert (user.uid, user.gid) == (1000, 50)


def test_a_number_that_passwd_does_not_know_has_group_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "1234" as an image's user is valid without an entry."""
    identity = users.from_spec(oci_pb2.User(), agent_pb2.StringUser(uid="1234"))
    user = _lookup(monkeypatch, identity, passwd=PASSWD)
    assert (user.uid, user.gid, user.home) == (1234, 0, "/")


def test_unknown_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Falling back to root would be the worst answer; "broken" has no complete entry."""
    for name in ("nobody-here", "broken"):
        with pytest.raises(StepError, match=f"unable to find user {name}"):
            _lookup(monkeypatch, users.Identity(name, None, [], 0), passwd=PASSWD)


def test_umask_is_022_unless_given() -> None:
    """OCI's default, and 0 is a value."""
    assert users.from_spec(oci_pb2.User()).umask == 0o022
    assert users.from_spec(oci_pb2.User(Umask=0)).umask == 0


# --- the process --------------------------------------------------------------------------------------------


def test_environment_last_one_wins() -> None:
    """As execve(2) callers expect from getenv with duplicates removed."""
    assert _plan_process(env=["A=1", "B=x=y", "A=2", "C="]).environment == {"A": "2", "B": "x=y", "C": ""}


@pytest.mark.parametrize(
    "mapping",
    [
        {"args": []},
        {"args": [""]},
        {"args": ["a\0b"]},
        {"env": ["NOVALUE"]},
        {"env": ["=x"]},
        {"env": ["A=\0"]},
        {"cwd": "relative"},
        {"cwd": "/a\0b"},
        {"oomScoreAdj": 1001},
        {"rlimits": [{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]},
        {"rlimits": [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]},
        {"rlimits": [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2},
        {"scheduler": {"policy": "SCHED_WISH"}},
        {"ioPriority": {"class": "IOPRIO_CLASS_MINE"}},
    ],
)
def test_what_cannot_be_meant_is_refused(mapping: dict[str, Any]) -> None:
    """InvalidSpec names the field by its OCI path."""
    with pytest.raises(InvalidSpec, match=r"^process"):
        _plan_process(**mapping)


def test_rlimits_become_numbers() -> None:
    """Infinity is the largest 64-bit number, as OCI has it."""
    limits = rlimits.plan(
        _process(rlimits=[{"type": "RLIMIT_NOFILE", "soft": 10, "hard": (1 << 64) - 1}]).Rlimits
    )
    assert limits == [(7, 10, syscalls.RLIM_INFINITY)]


def test_scheduling_attributes() -> None:
    """Names of sched_setattr(2), ioprio_set(2) and personality(2) become their numbers."""
    process = _process(
        scheduler={"policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
        ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 7},
        execCPUAffinity={"initial": "0", "final": "0-2,5"},
    )
    result = attributes.plan(process, _linux(personality={"domain": "LINUX32"}), is_exec=True)
    assert result.scheduler == (3, 1, 5, 0, (0, 0, 0))
    assert result.io_priority == (2, 7)
    assert (result.cpus_first, result.cpus_then) == ({0}, {0, 1, 2, 5})
    assert result.personality == 8


def test_affinity_is_for_exec_only() -> None:
    """OCI: execCPUAffinity does not apply to the container's own process."""
    process = _process(execCPUAffinity={"final": "0"})
    assert attributes.plan(process, _linux(), is_exec=False).cpus_then is None


@pytest.mark.parametrize("text", ["x", "3-1", "1,", "-2", "99999999"])
def test_bad_cpu_lists_are_refused(text: str) -> None:
    """A set of a billion CPUs must not be built either."""
    with pytest.raises(InvalidSpec):
        attributes.parse_cpus(text, "field")


# --- the container ------------------------------------------------------------------------------------------


def test_sysctl_names_become_paths() -> None:
    """The first separator decides: net.ipv4.conf.eth0/1.x and net/ipv4/conf/eth0.1/x are the same."""
    assert plan.plan_sysctls({"net.ipv4.ip_forward": "1"}) == [("net/ipv4/ip_forward", "1")]
    assert plan.plan_sysctls({"net.ipv4.conf.eth0/1.mtu": "1"}) == [("net/ipv4/conf/eth0.1/mtu", "1")]
    assert plan.plan_sysctls({"net/ipv4/conf/eth0.1/mtu": "1"}) == [("net/ipv4/conf/eth0.1/mtu", "1")]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/../b", "net..x", "", "/etc/shadow", "kernel/./x"])
def test_sysctl_names_stay_below_proc_sys(name: str) -> None:
    """A name is not a way out of /proc/sys."""
    with pytest.raises(InvalidSpec, match=r"linux\.sysctl"):
        plan.plan_sysctls({name: "1"})


def test_relative_root_is_in_the_bundle() -> None:
    """OCI: relative to the bundle."""
    assert _plan_init().rootfs == "/bundle/rootfs"


def test_missing_root_is_refused() -> None:
    """Otherwise the guest's own root would be the container's."""
    with pytest.raises(InvalidSpec, match=r"root\.path"):
        _plan_init(root={})


def test_hostname_needs_a_uts_namespace() -> None:
    """Without one the name would be the guest's."""
    assert _plan_init(hostname="box").hostname == ""
    spaces = {"namespaces": [{"type": "uts"}]}
    assert _plan_init(hostname="box", domainname="example", linux=spaces).hostname == "box"


def test_what_the_guest_cannot_do_is_said() -> None:
    """Ignoring it would be a lie."""
    with pytest.raises(Unsupported, match="netDevices"):
        _plan_init(linux={"netDevices": {"eth0": {}}})
    with pytest.raises(Unsupported, match="intelRdt"):
        _plan_init(linux={"intelRdt": {"closID": "x"}})


def test_propagation_names() -> None:
    """rslave is the default; others are refused."""
    assert rootfs.propagation("") == syscalls.MS_SLAVE | syscalls.MS_REC
    with pytest.raises(InvalidSpec):
        rootfs.propagation("loud")


# --- namespaces ---------------------------------------------------------------------------------------------


def _namespaces(
    shared: dict[str, str] | None = None, pid: str | None = None, **linux: Any
) -> namespaces.Plan:
    return namespaces.plan(_linux(**linux), shared or {}, pid)


def test_a_mount_namespace_is_never_shared() -> None:
    """The agent's own mounts must not change, whatever the spec says."""
    assert _namespaces().new == syscalls.CLONE_NEWNS


def test_listed_without_path_is_new_and_with_path_is_joined() -> None:
    """OCI's rule."""
    spaces = [{"type": "ipc"}, {"type": "network", "path": "/run/netns/x"}]
    result = _namespaces(namespaces=spaces)
    assert result.new == syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC
    assert result.paths == {"network": "/run/netns/x"}


def test_the_sandboxs_namespaces_replace_new_ones() -> None:
    """ipc and uts are the pod's, pid too if the pod shares it; a path in the spec wins."""
    spaces = [{"type": "ipc"}, {"type": "uts", "path": "/own"}, {"type": "pid"}, {"type": "cgroup"}]
    result = _namespaces(
        {"ipc": "/pod/ipc", "uts": "/pod/uts", "network": "/no"}, "/pod/pid", namespaces=spaces
    )
    assert result.paths == {"ipc": "/pod/ipc", "uts": "/own", "pid": "/pod/pid"}
    assert result.new == syscalls.CLONE_NEWNS | syscalls.CLONE_NEWCGROUP


@pytest.mark.parametrize(
    "linux",
    [
        {"namespaces": [{"type": "magic"}]},
        {"namespaces": [{"type": "pid"}, {"type": "pid", "path": "/x"}]},
        {"namespaces": [{"type": "user"}]},
        {"namespaces": [{"type": "user"}], "uidMappings": [{"hostID": 1, "containerID": 0, "size": 1}]},
        {"uidMappings": [{"hostID": 1, "containerID": 0, "size": 1}]},
        {"timeOffsets": {"boottime": {"secs": 1}}},
        {"namespaces": [{"type": "time"}], "timeOffsets": {"realtime": {"secs": 1}}},
    ],
)
def test_bad_namespaces_are_refused(linux: dict[str, Any]) -> None:
    """Unknown, doubled, without the mappings or the namespace that they need."""
    with pytest.raises(InvalidSpec):
        _namespaces(**linux)


def test_time_offsets_are_the_kernels_lines() -> None:
    """One line per clock, for /proc/PID/timens_offsets."""
    result = _namespaces(
        namespaces=[{"type": "time"}], timeOffsets={"boottime": {"secs": 604800, "nanosecs": 5}}
    )
    assert result.time_offsets == "boottime 604800 5\n"


def test_ids_outside() -> None:
    """An id inside is another number outside; what is not mapped stays."""
    mapping = [(0, 100000, 1000), (5000, 7, 1)]
    assert [namespaces.to_outside(mapping, each) for each in (0, 999, 1000, 5000)] == [
        100000,
        100999,
        1000,
        7,
    ]


# --- devices ------------------------------------------------------------------------------------------------


def test_default_devices_and_the_specs() -> None:
    """The spec wins where it names a default; FileMode 0 is a mode and its absence means 0666."""
    listed = [
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0, "uid": 5},
        {"path": "dev/fuse", "type": "c", "major": 10, "minor": 229},
        {"path": "/dev/pipe", "type": "p"},
    ]
    planned = {device.path: device for device in devices.plan(_linux(devices=listed).Devices)}
    assert stat.S_IMODE(planned["/dev/null"].mode) == 0
    assert planned["/dev/null"].uid == 5
    assert planned["/dev/fuse"].mode == stat.S_IFCHR | 0o666
    assert stat.S_ISFIFO(planned["/dev/pipe"].mode)
    assert {"/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"} <= set(planned)


def test_unknown_device_types_are_refused() -> None:
    """InvalidSpec with the index."""
    with pytest.raises(InvalidSpec, match=r"linux\.devices\[0\]\.type"):
        devices.plan(_linux(devices=[{"path": "/dev/x", "type": "z"}]).Devices)
