"""A hostile image or neighbour against the agent: the CVEs of runc and Kata as tests."""

from __future__ import annotations

import ctypes
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from agent.api import oci_pb2
from agent.container import spawn
from agent.errors import AgentError, DeadlineExceeded
from agent.linux import syscalls
from agent.process.stdio import StdioPlan
from tests.component.test_container_process import status_of
from tests.framework.box import Guest, Streams, bind, default_mounts
from tests.framework.inguest import in_guest, need_busybox, need_root

pytestmark = [need_root, need_busybox, pytest.mark.usefixtures("either_way")]

RENAME_EXCHANGE = 2


def attempt(guest: Guest, args: list[str] | str, **changes: Any) -> str:
    """What comes of running it: the error, or the output."""
    try:
        return guest.run(args, **changes).out
    except AgentError as error:
        return str(error)


def tmpfs(destination: str) -> dict[str, Any]:
    """One more mount."""
    return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}


def outside_of(guest: Guest) -> Path:
    """A directory of the guest that no container may reach."""
    path = guest.directory / "guest-secret"
    path.mkdir(exist_ok=True)
    (path / "file").write_text("secret")
    return path


# --- the image ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["/guest", "../../../../../../../../guest", "/proc/self/root/guest"])
def test_mount_targets_stay_in_the_rootfs(link: str) -> None:
    """A symlink of the image that points outside leads to a place inside (CVE-2021-30465)."""

    def body(guest: Guest) -> tuple[str, bool]:
        target = "/guest-target-of-a-test"
        (guest.rootfs() / "link").symlink_to(link.replace("/guest", target))
        out = attempt(
            guest,
            f"grep ' {target} ' /proc/self/mountinfo | wc -l",
            mounts=[*default_mounts(), tmpfs("/link")],
        )
        return out, os.path.exists(target)

    out, escaped = in_guest(body)
    assert not escaped
    # Magic links are not followed at all.
    assert out == "1\n" if not link.startswith("/proc") else "too many levels" in out or out == "0\n"


def test_dangling_symlink_in_the_middle_is_made_inside() -> None:
    """The directories of a mount target are made where the container would see them."""

    def body(guest: Guest) -> tuple[str, bool]:
        (guest.rootfs() / "var").symlink_to("/made/up")
        out = attempt(guest, "ls -d /made/up/lib/x", mounts=[*default_mounts(), tmpfs("/var/lib/x")])
        return out, os.path.exists("/made")

    assert in_guest(body) == ("/made/up/lib/x\n", False)


def test_symlink_loops_end() -> None:
    """An error and no hang."""

    def body(guest: Guest) -> str:
        (guest.rootfs() / "a").symlink_to("b")
        (guest.rootfs() / "b").symlink_to("a")
        return attempt(guest, "true", mounts=[*default_mounts(), tmpfs("/a/x")])

    assert "too many levels of symbolic links" in in_guest(body)


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_proc_and_sys_are_never_symlinks(name: str) -> None:
    """Otherwise procfs would be mounted where the image chooses, and its writes faked (CVE-2019-19921)."""

    def body(guest: Guest) -> str:
        root = guest.rootfs()
        (root / name).rmdir()
        (root / "elsewhere").mkdir()
        (root / name).symlink_to("/elsewhere")
        return attempt(guest, "true")

    assert "must be mounted on an ordinary directory" in in_guest(body)


@pytest.mark.parametrize(
    ("destination", "allowed"),
    [("/proc/self", False), ("/proc/sys/kernel", False), ("/proc/cpuinfo", True), ("/sneaky", False)],
)
def test_binds_over_procfs(destination: str, *, allowed: bool) -> None:
    """Only the files that lxcfs replaces, also through a symlink of the image (CVE-2019-16884)."""

    def body(guest: Guest) -> str:
        source = guest.directory / "fake"
        source.write_text("fake\n") if allowed else source.mkdir()
        (guest.rootfs() / "sneaky").symlink_to("/proc/tty")
        return attempt(guest, "cat /proc/cpuinfo", mounts=[*default_mounts(), bind(source, destination)])

    out = in_guest(body)
    if allowed:
        assert out == "fake\n"
    else:
        assert "cannot be mounted because it is inside /proc" in out


@pytest.mark.parametrize("cwd", ["/proc/self/fd/3", "/proc/self/fd/8", "/proc/1/root", "/proc/self/cwd", "/escape"])
def test_working_directory_cannot_be_a_leaked_descriptor(cwd: str) -> None:
    """Magic links are no working directory, in create and in exec (CVE-2024-21626, Kata #13587)."""

    def body(guest: Guest) -> tuple[str, str]:
        kept = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        os.dup2(kept, 8)
        (guest.rootfs() / "escape").symlink_to("/proc/self/fd/8")
        created = attempt(guest, "ls ..", process={"cwd": cwd})
        container = guest.started(["sleep", "100"])
        try:
            executed = guest.exec(container, "ls ..", process={"cwd": cwd}).out
        except AgentError as error:
            executed = str(error)
        return created, executed

    for text in in_guest(body):
        assert text.startswith("unable to start container process: chdir to cwd")


def test_passwd_that_is_a_trap() -> None:
    """A FIFO, a device or a link out as /etc/passwd must neither stop the agent nor be read."""

    def body(guest: Guest) -> list[str]:
        secret = guest.directory / "passwd"
        secret.write_text("root:x:0:0::/leaked:/bin/sh\n")
        passwd = guest.rootfs() / "etc/passwd"
        found = []
        passwd.unlink()
        os.mkfifo(passwd)
        found.append(attempt(guest, "echo $HOME"))
        passwd.unlink()
        os.mknod(passwd, stat.S_IFCHR | 0o666, os.makedev(1, 9))
        found.append(attempt(guest, "echo $HOME"))
        passwd.unlink()
        passwd.symlink_to(secret)
        found.append(attempt(guest, "echo $HOME"))
        passwd.unlink()
        passwd.symlink_to("/proc/self/fd/3")
        found.append(attempt(guest, "echo $HOME"))
        return found

    assert in_guest(body) == ["/\n"] * 4


def test_masked_path_through_a_symlink_of_the_image() -> None:
    """It masks what the container would reach, inside the rootfs; the guest's file stays readable outside."""

    def body(guest: Guest) -> tuple[str, str]:
        secret = outside_of(guest) / "file"
        (guest.rootfs() / "link").symlink_to(secret)
        (guest.rootfs() / "etc/own").write_text("own")
        (guest.rootfs() / "own-link").symlink_to("/etc/own")
        out = attempt(guest, "cat /etc/own", linux={"maskedPaths": ["/link", "/own-link"]})
        return out, secret.read_text()

    assert in_guest(body) == ("", "secret")


def test_device_paths_stay_inside() -> None:
    """linux.devices and the default devices are made in the rootfs, whatever its /dev is."""

    def body(guest: Guest) -> tuple[bool, bool]:
        outside = outside_of(guest)
        (guest.rootfs() / "opt").symlink_to(outside)
        listed = [{"path": "/opt/dev0", "type": "c", "major": 1, "minor": 3}]
        attempt(guest, "true", linux={"devices": listed})
        return (outside / "dev0").exists(), (outside / "null").exists()

    assert in_guest(body) == (False, False)


# --- a neighbour --------------------------------------------------------------------------------------------


def test_a_neighbour_cannot_trace_an_exec_in_its_pid_namespace() -> None:
    """Before its program runs the child is not dumpable: its exe, root and descriptors are closed."""

    def body(guest: Guest) -> list[str]:
        pause = guest.started(["sleep", "1000"])
        container = guest.container(guest.spec("true"), extra_pidns=pause.namespace_path("pid"))
        container.create(StdioPlan())
        status = status_of(Path(f"/proc/{container.init.pid}/status").read_text())
        inside = status["NSpid"].split()[-1]
        script = f"cd /proc/{inside} && for f in exe root cwd fd/0 fd/1; do readlink $f || echo denied; done"
        return guest.exec(pause, script).out.split()

    assert in_guest(body) == ["denied"] * 5


# "dir" may be the link, which leads to the container's own root, or have changed its name since.
INSIDE = ("/inner", "/vol/dir/inner", "/vol/link/inner")


def _mountinfo(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/mountinfo").read_text().splitlines()


def _own_mounts(guest: Guest) -> list[str]:
    """Mounts below the stand-in's directory; others may go when somebody removes their mount points."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(guest.directory) in line]


def test_a_neighbour_that_exchanges_a_mount_target() -> None:
    """A shared volume whose directory becomes a symlink again and again: no mount ever leaves the rootfs."""

    def body(guest: Guest) -> tuple[int, list[str]]:
        volume = guest.directory / "volume"
        (volume / "dir").mkdir(parents=True)
        (volume / "link").symlink_to("/")
        fd = os.open(volume, os.O_RDONLY)
        pid = os.fork()
        if pid == 0:
            libc = ctypes.CDLL(None)
            while True:
                libc.renameat2(fd, b"dir", fd, b"link", RENAME_EXCHANGE)
        before = _own_mounts(guest)
        made, wrong = 0, []
        for _ in range(40):
            mounts = [*default_mounts(), bind(volume, "/vol"), tmpfs("/vol/dir/inner")]
            container = guest.container(guest.spec(["sleep", "100"], mounts=mounts))
            try:
                container.create(StdioPlan())
            except AgentError:
                container.remove()
                continue
            made += 1
            points = [line.split()[4] for line in _mountinfo(container.init.pid) if "/inner" in line]
            wrong += [point for point in points if point not in INSIDE]
            container.remove()
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        assert _own_mounts(guest) == before
        return made, wrong

    made, wrong = in_guest(body)
    assert wrong == []
    assert made > 0


def test_capabilities_of_an_exec_do_not_come_from_the_containers_procfs() -> None:
    """A fake cap_last_cap in the container changes nothing (Kata #13615)."""
    admin = [f"CAP_{name}" for name in ("SYS_ADMIN", "CHOWN")]
    caps = {"bounding": admin, "permitted": admin, "effective": admin}

    def body(guest: Guest) -> str:
        container = guest.started(
            "echo 0 > /tmp/fake; mount --bind /tmp/fake /proc/sys/kernel/cap_last_cap; touch /ready; sleep 100",
            process={"capabilities": caps},
            linux={"readonlyPaths": []},
        )
        guest.until((guest.rootfs() / "ready").exists)
        own = {"bounding": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"]}
        return guest.exec(container, "cat /proc/sys/kernel/cap_last_cap /proc/self/status", process={"capabilities": own}).out

    out = in_guest(body)
    assert out.startswith("0\n")
    assert int(status_of(out)["CapEff"], 16) == int(status_of(out)["CapBnd"], 16) == 1


def test_sysctls_are_not_written_to_a_file_of_the_image() -> None:
    """They go through the agent's procfs and not through what the container shows as /proc."""

    def body(guest: Guest) -> tuple[str, str]:
        forward = Path("/proc/sys/net/ipv4/ip_forward")
        forward.write_text("0")  # a new network namespace starts with the host's value
        fake = guest.rootfs() / "fake"
        (fake / "sys/net/ipv4").mkdir(parents=True)
        (fake / "sys/net/ipv4/ip_forward").write_text("untouched")
        mounts = [mount for mount in default_mounts() if mount["destination"] != "/proc"]
        (guest.rootfs() / "proc").rmdir()
        (guest.rootfs() / "proc").symlink_to("fake")
        attempt(
            guest,
            "true",
            mounts=mounts,
            linux={"sysctl": {"net.ipv4.ip_forward": "1"}, "maskedPaths": [], "readonlyPaths": []},
        )
        return (fake / "sys/net/ipv4/ip_forward").read_text(), forward.read_text()

    assert in_guest(body) == ("untouched", "0\n")


def test_terminal_of_an_exec_needs_a_real_devpts() -> None:
    """A regular file, FIFO or link in place of the container's /dev/pts/ptmx is refused."""
    admin = [f"CAP_{name}" for name in ("SYS_ADMIN", "MKNOD", "DAC_OVERRIDE")]
    caps = {"bounding": admin, "permitted": admin, "effective": admin}

    def body(guest: Guest) -> str:
        container = guest.started(
            "mount -t tmpfs none /dev/pts; mknod /dev/pts/ptmx p; touch /ready; sleep 100",
            process={"capabilities": caps},
        )
        guest.until((guest.rootfs() / "ready").exists)
        message = oci_pb2.Process(Args=["true"], Cwd="/", Env=["PATH=/bin"], Terminal=True)
        try:
            container.exec("e", message, Streams(terminal=True).plan())
        except AgentError as error:
            return str(error)
        return "no failure"

    assert "is not the multiplexer of a devpts" in in_guest(body)


def test_a_container_that_blocks_an_exec_costs_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that hangs in the container's file system is killed, and the agent goes on."""
    monkeypatch.setattr(spawn, "SETUP_SECONDS", 0.5)

    def body(guest: Guest) -> tuple[str, float, list[str]]:
        from agent.container import program

        container = guest.started(["sleep", "100"])
        program.find_program = lambda process: time.sleep(100) or ""  # type: ignore[func-returns-value]
        began = time.monotonic()
        try:
            guest.exec(container, "true")
        except DeadlineExceeded as error:
            left = [name for name in os.listdir("/proc") if name.isdigit()]
            return str(error), time.monotonic() - began, left
        return "no failure", 0, []

    text, seconds, left = in_guest(body)
    assert text == "setting up the process took longer than 0.5 s" or text.startswith("setting up the process")
    assert seconds < 5
    assert len(left) == 2


def test_namespaces_flags_are_known() -> None:
    """The kinds that an exec joins are all the kinds that exist in this design."""
    from agent.container.container import JOIN_ORDER
    from agent.namespaces import FLAGS

    assert set(JOIN_ORDER) | {"pid"} == set(FLAGS)
    assert FLAGS["mount"] == syscalls.CLONE_NEWNS
