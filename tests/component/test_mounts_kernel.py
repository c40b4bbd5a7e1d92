"""Mounts as the kernel shows them inside a container (its mountinfo), and what they do."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from agent.errors import AgentError
from agent.linux import syscalls
from tests.framework.box import Finished, Guest, bind, default_mounts
from tests.framework.inguest import in_guest, need_busybox, need_root

pytestmark = [need_root, need_busybox, pytest.mark.usefixtures("either_way")]


def mountinfo(text: str) -> dict[str, list[str]]:
    """mount point -> [options of the mount, optional fields..., "-", type, source, options of the fs];
    topmost.
    """
    return {fields[4]: fields[5:] for fields in (line.split() for line in text.splitlines())}


def with_mounts(*more: dict[str, Any]) -> list[dict[str, Any]]:
    """The default mounts and others."""
    return [*default_mounts(), *more]


def run_with(script: str, make: list[str], mount: dict[str, Any], **changes: Any) -> Finished:
    """Run with one more mount; "SRC" in its source is a directory with `make`'s files ("name/" is a
    directory).
    """

    def body(guest: Guest) -> Finished:
        source = guest.directory / "source"
        source.mkdir()
        for name in make:
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                path.mkdir(exist_ok=True)
            else:
                path.write_text(name)
        planned = dict(mount, source=mount["source"].replace("SRC", str(source)))
        return guest.run(script, mounts=with_mounts(planned), **changes)

    return in_guest(body)


def test_default_mounts_in_mountinfo() -> None:
    """Types and options of the usual seven."""
    found = mountinfo(in_guest(lambda guest: guest.run(["cat", "/proc/self/mountinfo"])).out)
    kinds = {point: fields[fields.index("-") + 1] for point, fields in found.items()}
    assert kinds["/proc"] == "proc"
    assert kinds["/dev"] == "tmpfs"
    assert kinds["/dev/pts"] == "devpts"
    assert kinds["/dev/mqueue"] == "mqueue"
    assert kinds["/sys"] == "sysfs"
    assert found["/sys"][0].startswith("ro,nosuid,nodev,noexec")
    assert "size=65536k" in found["/dev/shm"][-1]


def test_nothing_of_the_agents_tree_is_left() -> None:
    """After pivot_root every mount is the container's own."""
    lines = in_guest(lambda guest: guest.run(["cat", "/proc/self/mountinfo"])).out.splitlines()
    roots = [line for line in lines if line.split()[4] == "/"]
    assert len(roots) == 1
    ids = {line.split()[0] for line in lines}
    orphans = [line for line in lines if line.split()[1] not in ids and line.split()[4] != "/"]
    assert not orphans


def test_bind_of_a_directory_and_of_a_file() -> None:
    """Targets are made where they are missing, as directory or file."""
    result = run_with("cat /new/dir/a", ["a"], bind("SRC", "/new/dir"))
    assert result.out == "a"
    result = run_with("cat /new/file; ls -l /new", ["a"], bind("SRC/a", "/new/file"))
    assert result.out.startswith("a")


def test_read_only_bind() -> None:
    """ro is the mount's: writes fail, the source stays writable outside."""
    result = run_with("touch /data/x", ["a"], bind("SRC", "/data", "ro"))
    assert "Read-only file system" in result.err


def test_bind_keeps_the_sources_flags_unless_told() -> None:
    """nosuid of the source stays when only noexec is asked for; "suid" takes it away."""

    def body(guest: Guest) -> tuple[str, str]:
        source = guest.directory / "source"
        source.mkdir()
        syscalls.mount("tmpfs", str(source), "tmpfs", syscalls.MS_NOSUID)
        mounts = with_mounts(bind(source, "/kept", "noexec"), bind(source, "/cleared", "suid"))
        found = mountinfo(guest.run(["cat", "/proc/self/mountinfo"], mounts=mounts).out)
        return found["/kept"][0], found["/cleared"][0]

    kept, cleared = in_guest(body)
    assert {"nosuid", "noexec"} <= set(kept.split(","))
    assert "nosuid" not in cleared.split(",")


@pytest.mark.parametrize(("option", "inner_is_ro"), [("ro", False), ("rro", True)])
def test_recursive_read_only(option: str, *, inner_is_ro: bool) -> None:
    """ro is the top mount's only, rro is the whole tree's."""

    def body(guest: Guest) -> tuple[str, str]:
        source = guest.directory / "source"
        (source / "inner").mkdir(parents=True)
        syscalls.mount("tmpfs", str(source / "inner"), "tmpfs", 0)
        result = guest.run(["cat", "/proc/self/mountinfo"], mounts=with_mounts(bind(source, "/data", option)))
        found = mountinfo(result.out)
        return found["/data"][0], found["/data/inner"][0]

    outer, inner = in_guest(body)
    assert outer.split(",")[0] == "ro"
    assert (inner.split(",")[0] == "ro") is inner_is_ro


def test_bind_without_r_shows_no_submounts() -> None:
    """bind is one mount, rbind is the tree."""

    def body(guest: Guest) -> str:
        source = guest.directory / "source"
        (source / "inner").mkdir(parents=True)
        syscalls.mount("tmpfs", str(source / "inner"), "tmpfs", 0)
        (source / "inner/file").write_text("x")
        flat = {"destination": "/flat", "type": "none", "source": str(source), "options": ["bind"]}
        return guest.run("ls /flat/inner /deep/inner", mounts=with_mounts(flat, bind(source, "/deep"))).out

    assert in_guest(body).split() == ["/deep/inner:", "file", "/flat/inner:"]


@pytest.mark.parametrize(
    ("option", "field"),
    [("rshared", "shared:"), ("rslave", "master:"), ("rprivate", ""), ("unbindable", "unbindable")],
)
def test_propagation_of_a_bind(option: str, field: str) -> None:
    """The optional fields of mountinfo say it."""

    def body(guest: Guest) -> str:
        source = guest.directory / "source"
        source.mkdir()
        syscalls.mount("tmpfs", str(source), "tmpfs", 0)
        syscalls.mount(None, str(source), None, syscalls.MS_SHARED)
        planned = {
            "destination": "/data",
            "type": "bind",
            "source": str(source),
            "options": ["rbind", option],
        }
        script = ["cat", "/proc/self/mountinfo"]
        found = mountinfo(guest.run(script, mounts=with_mounts(planned)).out)["/data"]
        return " ".join(found[1 : found.index("-")])

    shown = in_guest(body)
    assert shown.startswith(field) if field else shown == ""


def test_slave_volume_sees_later_mounts_and_gives_none() -> None:
    """HostToContainer: what is mounted in the volume later appears inside, not the other way round."""

    def body(guest: Guest) -> tuple[str, bool]:
        source = guest.directory / "source"
        (source / "late").mkdir(parents=True)
        (source / "mine").mkdir()
        syscalls.mount(str(source), str(source), None, syscalls.MS_BIND)
        syscalls.mount(None, str(source), None, syscalls.MS_SHARED)
        planned = {
            "destination": "/data",
            "type": "bind",
            "source": str(source),
            "options": ["rbind", "rslave"],
        }
        caps = {"bounding": ["CAP_SYS_ADMIN"], "permitted": ["CAP_SYS_ADMIN"], "effective": ["CAP_SYS_ADMIN"]}
        script = "mount -t tmpfs none /data/mine; touch /data/mine/x; echo ready; read line; cat /data/late/file"
        container = guest.container(guest.spec(script, mounts=with_mounts(planned), process={"capabilities": caps}))
        from tests.framework.box import Streams

        streams = Streams(keep_stdin=True)
        container.create(streams.plan())
        container.start()
        guest.until(lambda: streams.shows("ready"))
        syscalls.mount("tmpfs", str(source / "late"), "tmpfs", 0)
        (source / "late/file").write_text("late")
        streams.send(b"\n")
        result = streams.finish(guest, container.init)
        return result.out, (source / "mine/x").exists()

    out, leaked = in_guest(body)
    assert out == "ready\nlate"
    assert not leaked


def test_rshared_root_gives_mounts_to_the_agent() -> None:
    """Bidirectional: with rootfsPropagation rshared a mount in the volume appears outside."""

    def body(guest: Guest) -> tuple[bool, list[str]]:
        source = guest.directory / "source"
        (source / "mine").mkdir(parents=True)
        syscalls.mount(str(source), str(source), None, syscalls.MS_BIND)
        syscalls.mount(None, str(source), None, syscalls.MS_SHARED)
        planned = {
            "destination": "/data",
            "type": "bind",
            "source": str(source),
            "options": ["rbind", "rshared"],
        }
        caps = {"bounding": ["CAP_SYS_ADMIN"], "permitted": ["CAP_SYS_ADMIN"], "effective": ["CAP_SYS_ADMIN"]}
        container = guest.started(
            "mount -t tmpfs none /data/mine; touch /data/mine/x; sleep 100",
            mounts=with_mounts(planned),
            process={"capabilities": caps},
            linux={"rootfsPropagation": "rshared"},
        )
        guest.until((source / "mine/x").exists)
        container.remove()
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        ours = [point.removeprefix(str(guest.directory)) for point in points if str(guest.directory) in point]
        return (source / "mine/x").exists(), ours

    seen, points = in_guest(body)
    assert seen
    # The stand-in's own, the volume, and what the container mounted in it: nothing of the container's tree.
    assert points == ["", "/source", "/source/mine"]


def test_tmpfs_copy_up() -> None:
    """tmpcopyup: the image's content is in the tmpfs, with modes and links, and the image stays as it was."""
    mount = {
        "destination": "/etc",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["tmpcopyup", "ro", "mode=755"],
    }

    def body(guest: Guest) -> str:
        etc = guest.rootfs() / "etc"
        (etc / "sub").mkdir()
        (etc / "sub/secret").write_text("s")
        (etc / "sub/secret").chmod(0o640)
        os.chown(etc / "sub/secret", 5, 6)
        (etc / "link").symlink_to("plain")
        return guest.run("cat /etc/link; ls -ln /etc/sub; touch /etc/x", mounts=with_mounts(mount))  # type: ignore[return-value]

    result: Any = in_guest(body)
    assert result.out.startswith("no program\n")
    assert "-rw-r-----    1 5        6" in result.out
    assert "Read-only file system" in result.err


def test_read_only_tmpfs_still_gets_its_mount_points() -> None:
    """A ro /dev has its devices and /dev/pts, and is read-only for the program."""
    mounts = default_mounts()
    mounts[1]["options"] = [*mounts[1]["options"], "ro"]
    result = in_guest(lambda guest: guest.run("ls /dev; touch /dev/x", mounts=mounts))
    assert {"null", "pts", "fd", "shm"} <= set(result.out.split())
    assert "Read-only file system" in result.err


def test_id_mapped_bind() -> None:
    """Files of the source belong, inside, to the ids of the mapping."""
    mapping = [{"containerID": 0, "hostID": 3000, "size": 100}]

    def body(guest: Guest) -> str:
        source = guest.directory / "source"
        source.mkdir()
        (source / "file").write_text("x")
        planned = dict(bind(source, "/data", "ridmap"), uidMappings=mapping, gidMappings=mapping)
        return guest.run("stat -c %u:%g /data/file; touch /data/new", mounts=with_mounts(planned)).out

    assert in_guest(body) == "3000:3000\n"


def test_cgroup_mount() -> None:
    """type cgroup is cgroup v2 in the guest."""
    mount = {
        "destination": "/sys/fs/cgroup",
        "type": "cgroup",
        "source": "cgroup",
        "options": ["ro", "nosuid"],
    }
    script = ["cat", "/proc/self/mountinfo"]
    found = mountinfo(in_guest(lambda guest: guest.run(script, mounts=with_mounts(mount))).out)["/sys/fs/cgroup"]
    assert found[found.index("-") + 1] == "cgroup2"
    assert found[0].startswith("ro,nosuid")


def test_cgroup_mount_without_namespace_shows_the_own_cgroup_only() -> None:
    """Without a cgroup namespace the container sees its directory and not the guest's root."""
    mount = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}
    spaces = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]

    def body(guest: Guest) -> str:
        script = "cat /sys/fs/cgroup/cgroup.procs; cat /proc/self/mountinfo"
        return guest.run(script, mounts=with_mounts(mount), linux={"namespaces": spaces}).out

    out = in_guest(body, cgroups=True)
    assert out.split("\n")[0] == "1"
    root = next(line.split()[3] for line in out.splitlines() if " /sys/fs/cgroup " in line)
    assert root.startswith("/pod/c")


def test_missing_source_is_named() -> None:
    """The error says which mount and why."""

    def body(guest: Guest) -> str:
        try:
            guest.run("true", mounts=with_mounts(bind("/no/such/source", "/data")))
        except AgentError as error:
            return str(error)
        return "no failure"

    assert in_guest(body) == "mount rbind /no/such/source -> /data: no such file or directory"


def test_unknown_file_system_is_named() -> None:
    """mount(2)'s own refusal, with the mount."""
    planned = {"destination": "/data", "type": "nosuchfs", "source": "x"}

    def body(guest: Guest) -> str:
        try:
            guest.run("true", mounts=with_mounts(planned))
        except AgentError as error:
            return str(error)
        return "no failure"

    assert in_guest(body) == "mount nosuchfs x -> /data: no such device"


# --- the root itself ----------------------------------------------------------------------------------------


def test_read_only_root() -> None:
    """root.readonly: the root is read-only, mounts in it are not."""
    result = in_guest(lambda guest: guest.run("touch /x; touch /run/y && echo fine", root={"readonly": True}))
    assert "Read-only file system" in result.err
    assert result.out == "fine\n"


def test_masked_paths() -> None:
    """Files read as empty, directories are empty and read-only, missing ones are no error."""
    script = "cat /proc/keys; cat /etc/passwd; ls -a /etc/dir; touch /etc/dir/x"

    def body(guest: Guest) -> Finished:
        (guest.rootfs() / "etc/dir").mkdir()
        (guest.rootfs() / "etc/dir/file").write_text("x")
        masked = ["/proc/keys", "/etc/passwd", "/etc/dir", "/no/such", "/etc/plain/below"]
        return guest.run(script, linux={"maskedPaths": masked})

    result = in_guest(body)
    assert result.out.split() == [".", ".."]
    assert "Read-only file system" in result.err


def test_read_only_paths() -> None:
    """/proc/sys cannot be written, and the rest of /proc can."""
    result = in_guest(lambda guest: guest.run("echo x > /proc/sys/kernel/hostname; echo 1 > /proc/self/oom_score_adj && echo ok"))
    assert "Read-only file system" in result.err
    assert result.out == "ok\n"


def test_default_devices_work() -> None:
    """Type, number, mode and function of the default devices, and the links."""
    script = (
        "for d in null zero full random urandom tty; do stat -c '%n %t,%T %a %F' /dev/$d; done; "
        "head -c 3 /dev/zero | wc -c; echo x > /dev/null && echo written; "
        "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; echo x > /dev/full"
    )
    result = in_guest(lambda guest: guest.run(script))
    lines = result.out.splitlines()
    numbers = {line.split()[0]: line.split()[1:3] for line in lines[:6]}
    assert numbers["/dev/null"] == ["1,3", "666"]
    assert numbers["/dev/tty"] == ["5,0", "666"]
    assert numbers["/dev/urandom"] == ["1,9", "666"]
    assert lines[6:8] == ["3", "written"]
    assert lines[8:] == ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx"]
    assert "No space left" in result.err


def test_devices_of_the_spec() -> None:
    """Made with mode and owner, parents included; the spec's /dev/null replaces the default one."""
    listed = [
        {
            "path": "/dev/net/tun",
            "type": "c",
            "major": 10,
            "minor": 200,
            "fileMode": 0o600,
            "uid": 1,
            "gid": 2,
        },
        {"path": "/opt/pipe", "type": "p", "fileMode": 0o644},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o622},
    ]
    script = "stat -c '%n %t,%T %a %u:%g' /dev/net/tun /dev/null; stat -c %F /opt/pipe"
    assert in_guest(lambda guest: guest.run(script, linux={"devices": listed})).out.splitlines() == [
        "/dev/net/tun a,c8 600 1:2",
        "/dev/null 1,3 622 0:0",
        "fifo",
    ]


def test_an_images_own_device_is_checked() -> None:
    """A file of the image where a default device belongs is replaced, as it could collect what is written."""

    def body(guest: Guest) -> tuple[str, bool]:
        mounts = [mount for mount in default_mounts() if not mount["destination"].startswith("/dev")]
        (guest.rootfs() / "dev/null").write_text("trap")
        os.mknod(guest.rootfs() / "dev/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        result = guest.run("stat -c %t,%T /dev/null /dev/zero", mounts=mounts)
        return result.out, stat.S_ISCHR((guest.rootfs() / "dev/null").stat().st_mode)

    out, replaced = in_guest(body)
    assert out.split() == ["1,3", "1,5"]
    assert replaced


def test_sysctls_hostname_and_domainname() -> None:
    """Written in the container's namespaces, though its own /proc/sys is read-only."""
    linux = {"sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "123456", "kernel.msgmax": "4096"}}
    script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax; hostname; cat /proc/sys/kernel/domainname"

    def body(guest: Guest) -> tuple[str, str]:
        forward = Path("/proc/sys/net/ipv4/ip_forward")
        forward.write_text("0")  # a new network namespace starts with the host's value
        linux["sysctl"]["net.ipv4.ip_forward"] = "1"
        result = guest.run(script, linux=linux, hostname="inside", domainname="example")
        return result.out, forward.read_text() + os.uname().nodename

    inside, outside = in_guest(body)
    assert inside.split() == ["1", "123456", "inside", "example"]
    assert outside.startswith("0\n")
    assert "inside" not in outside


def test_loopback_of_a_new_network_namespace_is_up() -> None:
    """As every runtime leaves it."""
    out = in_guest(lambda guest: guest.run("ip addr show lo")).out
    assert "UP" in out
    assert "127.0.0.1/8" in out
