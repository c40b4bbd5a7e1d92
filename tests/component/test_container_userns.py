"""Containers in a user namespace: mappings, ownership, devices, procfs, exec."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agent.process.stdio import StdioPlan
from tests.component.test_container_process import status_of
from tests.framework.box import NEW_NAMESPACES, Finished, Guest, Streams, bind, default_mounts
from tests.framework.inguest import in_guest, need_busybox, need_root

pytestmark = [need_root, need_busybox, pytest.mark.usefixtures("either_way")]

MAPPING = [{"containerID": 0, "hostID": 100000, "size": 65536}]
ALL = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETUID", "CAP_SETGID", "CAP_SYS_ADMIN", "CAP_MKNOD",
    "CAP_NET_ADMIN", "CAP_KILL", "CAP_SYS_CHROOT",
]  # fmt: skip


def linux(*leave_out: str, **more: Any) -> dict[str, Any]:
    """linux with a user namespace; `leave_out`: kinds that stay the agent's."""
    kinds = [kind for kind in [*NEW_NAMESPACES, "user"] if kind not in leave_out]
    spaces = [{"type": kind} for kind in kinds]
    return {"namespaces": spaces, "uidMappings": MAPPING, "gidMappings": MAPPING, **more}


def own(path: Path) -> None:
    """Give a rootfs to the root of the user namespace, as engines do."""
    for directory, _, names in os.walk(path):
        os.chown(directory, 100000, 100000)
        for name in names:
            os.chown(os.path.join(directory, name), 100000, 100000, follow_symlinks=False)


def run(script: str, **changes: Any) -> Finished:
    """One container in a user namespace to its end."""

    def body(guest: Guest) -> Finished:
        own(guest.rootfs())
        changes.setdefault("linux", linux())
        return guest.run(script, **changes)

    return in_guest(body)


def test_root_inside_is_nobody_outside() -> None:
    """Root in the container; another user for the guest."""

    def body(guest: Guest) -> tuple[str, dict[str, str]]:
        own(guest.rootfs())
        container = guest.container(guest.spec("id -u; cat /proc/self/uid_map; sleep 100", linux=linux()))
        streams = Streams()
        container.create(streams.plan())
        container.start()
        guest.until(lambda: streams.shows("65536"))
        return streams.text(1), status_of(Path(f"/proc/{container.init.pid}/status").read_text())

    inside, outside = in_guest(body)
    assert inside.split() == ["0", "0", "100000", "65536"]
    assert outside["Uid"].split() == ["100000"] * 4
    assert outside["NSpid"].split()[-1] == "1"


def test_mounts_and_devices_work_inside() -> None:
    """procfs of its own pid namespace, working device nodes with the right owner, devpts, sysfs."""
    result = run(
        "echo $$; echo x > /dev/null && head -c 2 /dev/zero | wc -c; stat -c %u:%g%t,%T /dev/null; ls -d /sys/class /dev/pts/ptmx"
    )
    assert result.err == ""
    assert result.out.split() == ["1", "2", "0:01,3", "/dev/pts/ptmx", "/sys/class"]


def test_capabilities_are_over_its_own_namespaces() -> None:
    """CAP_SYS_ADMIN mounts a tmpfs inside; CAP_MKNOD makes no device."""
    caps = {"bounding": ALL, "permitted": ALL, "effective": ALL}
    script = "mount -t tmpfs x /mnt && touch /mnt/f && echo mounted; mknod /tmp/null c 1 3; hostname other && hostname"
    result = run(script, process={"capabilities": caps})
    assert result.out.split() == ["mounted", "other"]
    assert "Operation not permitted" in result.err


def test_volumes_and_masks() -> None:
    """Binds are taken with the agent's rights, through directories closed to others; masks hold."""

    def body(guest: Guest) -> Finished:
        own(guest.rootfs())
        closed = guest.directory / "closed"
        closed.mkdir(0o700)
        (closed / "volume").mkdir()
        (closed / "volume/file").write_text("content\n")
        mounts = [*default_mounts(), bind(closed / "volume", "/data", "ro")]
        script = "cat /data/file; touch /data/x; cat /proc/keys | wc -c; echo 1 > /proc/sys/kernel/msgmax"
        return guest.run(script, linux=linux(maskedPaths=["/proc/keys"], readonlyPaths=["/proc/sys"]), mounts=mounts)

    result = in_guest(body)
    assert result.out.split() == ["content", "0"]
    assert result.err.count("Read-only file system") == 2


def test_id_mapped_rootfs_volume_with_the_containers_mapping() -> None:
    """idmap without mappings of its own uses the container's: files of the guest's root are root's inside."""

    def body(guest: Guest) -> Finished:
        own(guest.rootfs())
        volume = guest.directory / "volume"
        volume.mkdir()
        (volume / "file").write_text("x")
        mounts = [*default_mounts(), bind(volume, "/data", "idmap")]
        return guest.run("stat -c %u:%g /data/file; echo y > /data/new", linux=linux(), mounts=mounts)

    assert in_guest(body).out == "0:0\n"


def test_user_of_the_process_and_its_streams() -> None:
    """A user who is not root inside may open its streams again."""
    result = run("id -u; echo again > /dev/stdout", process={"user": {"uid": 1000, "gid": 1000}})
    assert result.out.split() == ["1000", "again"]


def test_with_the_pods_ipc_and_uts_namespaces() -> None:
    """Shared namespaces belong to the guest's user namespace and are joined all the same."""

    def body(guest: Guest) -> tuple[list[str], str]:
        own(guest.rootfs())
        shared = {"ipc": "/proc/self/ns/ipc", "uts": "/proc/self/ns/uts"}
        spec = guest.spec("readlink /proc/self/ns/ipc; id -u", linux=linux(), hostname="")
        container = guest.container(spec, shared_namespaces=shared)
        streams = Streams()
        container.create(streams.plan())
        container.start()
        return streams.finish(guest, container.init).out.split(), os.readlink("/proc/self/ns/ipc")

    (inside, uid), outside = in_guest(body)
    assert (inside, uid) == (outside, "0")


def test_with_the_agents_network_namespace() -> None:
    """sysfs cannot be mounted anew there; the guest's is bound, read-only as asked."""
    result = run("ls -d /sys/class/net/lo; touch /sys/x; echo end", linux=linux("network"))
    assert result.out.split() == ["/sys/class/net/lo", "end"]


def test_second_container_joins_the_first_ones_user_and_pid_namespaces() -> None:
    """A pod with a user namespace: by path."""

    def body(guest: Guest) -> Finished:
        own(guest.rootfs())
        first = guest.started(["sleep", "1000"], linux=linux())
        spaces = [{"type": kind} for kind in ("mount", "cgroup")]
        spaces += [{"type": kind, "path": first.namespace_path(kind)} for kind in ("user", "pid", "ipc", "uts", "network")]
        joined = dict(linux(), namespaces=spaces)
        return guest.run("cat /proc/1/cmdline; id -u; cat /proc/self/uid_map", linux=joined)

    result = in_guest(body)
    assert result.out.split() == ["sleep\x001000\x000", "0", "100000", "65536"]


def test_exec_and_terminal() -> None:
    """An exec is root inside and its user outside, with a terminal as well."""

    def body(guest: Guest) -> tuple[Finished, Finished]:
        own(guest.rootfs())
        container = guest.started(["sleep", "100"], linux=linux())
        from agent.api import oci_pb2

        streams = Streams(terminal=True, keep_stdin=True)
        message = oci_pb2.Process(Args=["sh", "-c", "tty; id -u"], Cwd="/", Env=["PATH=/bin"], Terminal=True)
        on_terminal = streams.finish(guest, container.exec("t", message, streams.plan()))
        user = {"uid": 1000, "gid": 1000}
        piped = guest.exec(container, "id -u; cat /proc/self/uid_map; echo x > /dev/stdout", process={"user": user})
        return on_terminal, piped

    on_terminal, piped = in_guest(body)
    assert on_terminal.out.split() == ["/dev/pts/0", "0"]
    assert piped.out.split() == ["1000", "0", "100000", "65536", "x"]


def test_oom_score_and_limits_are_set_by_the_agent() -> None:
    """A process in a user namespace could not set them itself."""
    process = {"oomScoreAdj": 100, "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}]}
    assert run("cat /proc/self/oom_score_adj; ulimit -n", process=process).out.split() == ["100", "64"]


def test_time_namespace_inside_a_user_namespace() -> None:
    """Its offsets are written though procfs belongs to the agent's user namespace."""
    spec = linux()
    spec["namespaces"].append({"type": "time"})
    spec["timeOffsets"] = {"boottime": {"secs": 5000000}}
    assert int(run("cut -d. -f1 /proc/uptime", linux=spec).out) > 5000000


def test_remove_leaves_nothing() -> None:
    """Also with the process that was forked in between."""

    def body(guest: Guest) -> tuple[list[str], int]:
        own(guest.rootfs())
        guest.run("true", linux=linux())
        before = guest.open_files()
        for _ in range(3):
            guest.run("true", linux=linux())
        container = guest.container(guest.spec("true", linux=linux()))
        container.create(StdioPlan())
        container.remove()
        return [name for name in os.listdir("/proc") if name.isdigit()], guest.open_files() - before

    assert in_guest(body) == (["1"], 0)


def test_cgroup_is_delegated() -> None:
    """The container's root may make children of its cgroup."""
    mount = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid"]}

    def body(guest: Guest) -> Finished:
        own(guest.rootfs())
        return guest.run("mkdir /sys/fs/cgroup/child && echo made", linux=linux(), mounts=[*default_mounts(), mount])

    assert in_guest(body, cgroups=True).out == "made\n"
