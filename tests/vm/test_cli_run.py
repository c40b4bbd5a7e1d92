"""`hako run` and its verbs, each a real container in a real microVM."""

from __future__ import annotations

import glob
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.framework import images
from tests.framework.hako import Hako
from tests.framework.screen import Screen

pytestmark = [
    pytest.mark.vm,
    pytest.mark.pods,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test"),
]
NONE = ("--network", "none")


@pytest.fixture(autouse=True)
def tidy(hako: Hako) -> Iterator[None]:
    """What a failed test leaves must not fail the next one."""
    yield
    hako.remove_everything()


def _run(hako: Hako, *words: str, **options: str) -> subprocess.CompletedProcess[str]:
    return hako.run("run", "--rm", *NONE, *words, **options)  # type: ignore[arg-type]


def _wait_for(what: str, condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)


def test_output_and_status(hako: Hako) -> None:
    """Both outputs stay apart, the status is the command's, and the guest's kernel is not the host's."""
    done = _run(hako, hako.image, "sh", "-c", "uname -r; echo err >&2; exit 3")
    assert (done.returncode, done.stderr) == (3, "err\n")
    assert done.stdout.strip() not in ("", os.uname().release)
    hako.assert_nothing_left(5)


def test_death_by_a_signal(hako: Hako) -> None:
    """128 + n when a signal killed the command."""
    assert _run(hako, hako.image, "sh", "-c", "sh -c 'kill -9 $$'; exit $?").returncode == 137


def test_the_share_is_read_far_ahead(hako: Hako) -> None:
    """Further than the kernel would by itself."""
    done = _run(hako, hako.image, "sh", "-c", "cat /sys/class/bdi/0:*/read_ahead_kb")
    assert done.stdout.split() == ["512"], done.stderr


def test_options_reach_the_container(hako: Hako, tmp_path: Path) -> None:
    """Variables, directory, user, hostname, entrypoint, limits, a read-only root: as asked for."""
    (tmp_path / "env").write_text("FROM_FILE=yes\n")
    script = (
        "echo $FROM_FILE $FROM_FLAG; pwd; id -u; id -g; hostname; cat /sys/fs/cgroup/memory.max;"
        "cat /sys/fs/cgroup/cpu.max; touch /x 2>/dev/null || echo read-only; grep CapBnd /proc/self/status"
    )
    done = _run(
        hako, "--env-file", str(tmp_path / "env"), "-e", "FROM_FLAG=too", "-w", "/var", "-u", "www-data:100",
        "-h", "box", "--entrypoint", "sh", "-m", "64m", "--cpus", "0.5", "--read-only", "--cap-drop", "ALL",
        "--cap-add", "CHOWN", hako.image, "-c", script,
    )  # fmt: skip
    assert done.stdout.split("\n")[:-1] == [
        "yes too", "/var", "33", "100", "box", str(64 << 20), "50000 100000", "read-only",
        "CapBnd:\t0000000000000001",
    ], done.stderr  # fmt: skip


def test_volumes(hako: Hako, tmp_path: Path) -> None:
    """A volume is the host's directory; a read-only one stays so for the guest's root too."""
    (tmp_path / "rw").mkdir()
    (tmp_path / "ro").mkdir()
    (tmp_path / "ro/file").write_text("from the host\n")
    script = "cat /ro/file; echo from the guest > /rw/file;mount -o remount,rw /ro; echo x > /ro/file; cat /ro/file"
    done = _run(
        hako, "-v", f"{tmp_path}/rw:/rw", "-v", f"{tmp_path}/ro:/ro:ro", "--cap-add", "ALL", hako.image, "sh",
        "-c", script,
    )  # fmt: skip
    assert done.stdout == "from the host\nfrom the host\n"
    assert (tmp_path / "rw/file").read_text() == "from the guest\n"
    assert (tmp_path / "ro/file").read_text() == "from the host\n"


def test_what_the_host_changes_is_seen_after_a_second(hako: Hako, tmp_path: Path) -> None:
    """Changed in place with the size it had, replaced, removed: the guest's caches do not outlive share.cache's second."""
    (tmp_path / "file").write_text("one")
    (tmp_path / "other").write_text("there")
    script = "cat /v/file /v/other; echo .; read line; cat /v/file /v/other 2>&1"
    argv = ["run", "--rm", "-i", "--network", "none", "-v", f"{tmp_path}:/v", hako.image, "sh", "-c", script]
    with hako.popen(*argv) as running:
        assert running.stdin is not None and running.stdout is not None
        assert running.stdout.readline() == "onethere.\n"
        (tmp_path / "file").write_text("two")
        (tmp_path / "other").unlink()
        time.sleep(1.5)
        said, _ = running.communicate("\n", timeout=60)
    assert said == "twocat: can't open '/v/other': No such file or directory\n"


def test_rootfs_is_used_in_place(hako: Hako, tmp_path: Path) -> None:
    """--rootfs DIR runs in the directory itself: what the container writes is there afterwards."""
    (tmp_path / "bin").mkdir()
    for name in ("busybox", "sh"):
        (tmp_path / "bin" / name).write_bytes(Path("/bin/busybox").read_bytes())
        (tmp_path / "bin" / name).chmod(0o755)
    tmp_path.chmod(0o755)
    done = _run(hako, "--rootfs", str(tmp_path), "/bin/sh", "-c", "echo in place > /written; echo done")
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    assert (tmp_path / "written").read_text() == "in place\n"


def test_piped_input_to_its_end(hako: Hako) -> None:
    """With -i all that is piped in arrives, and its end is the end."""
    text = "".join(f"line {number}\n" for number in range(40_000))
    done = _run(hako, "-i", hako.image, "sh", "-c", "cat; echo end", input=text)
    assert done.stdout == text + "end\n"


def test_a_terminal(hako: Hako) -> None:
    """-it gives a real terminal of our size, which follows; keys, Ctrl-C and Ctrl-D do what they do."""
    until_resized = "until [ '33 101' = \"$(stty size)\" ]; do sleep 0.1; done"
    script = f"trap 'echo INT' INT; stty size; {until_resized}; echo resized; cat; cat; echo end; exit 6"
    words = ("run", "--rm", "-it", *NONE, hako.image, "sh", "-c", script)
    screen = Screen(hako.argv(*words), env=hako.environment)
    screen.wait_for(b"24 80")
    screen.resize(101, 33)
    screen.wait_for(b"resized\r\n")
    screen.type(b"abc\r")
    screen.wait_for(b"abc\r\nabc\r\n")
    screen.type(b"\x03")
    screen.wait_for(b"INT")
    screen.type(b"\x04")
    screen.wait_for(b"end\r\n")
    assert screen.ended() == 6
    hako.assert_nothing_left(5)


def test_detaching_from_a_terminal(hako: Hako) -> None:
    """ctrl-p ctrl-q gives the terminal back and leaves the container running."""
    words = ("run", "--rm", "-it", "--name", "left", *NONE, hako.image, "sh")
    screen = Screen(hako.argv(*words), env=hako.environment)
    screen.wait_for(b"# ")
    screen.type(b"\x10\x11")
    assert screen.ended() == 0
    assert hako.state_of("left")["status"] == "running"
    hako.run("stop", "-t", "0", "left", check=True)
    hako.assert_nothing_left()


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("nosuch", 127, "executable file not found"),
        ("/bin/nosuch", 127, "no such file"),
        ("/etc/passwd", 126, "permission denied"),
    ],
)
def test_commands_that_cannot_start(hako: Hako, command: str, status: int, words: str) -> None:
    """127 for a command that is not there, 126 for one that cannot be executed; nothing is left."""
    done = hako.run("run", *NONE, hako.image, command)
    assert done.returncode == status and words in done.stderr
    hako.assert_nothing_left(5)


def test_background_logs_exec_stop_rm(hako: Hako) -> None:
    """The life of a container in the background, verb by verb."""
    name = "life"
    container = hako.detached(
        "--name",
        name,
        hako.image,
        "sh",
        "-c",
        "trap 'echo bye; exit 7' TERM; echo hi; while :; do sleep 0.1; done",
    )
    assert hako.state_of(name)["id"] == container
    _wait_for("its first output", lambda: hako.run("logs", name).stdout == "hi\n")
    follower = hako.popen("logs", "-f", "--timestamps", name)
    assert hako.run("rm", name).returncode == 1  # it runs
    assert hako.run("stop", name, check=True).stdout == f"{name}\n"
    out, _ = follower.communicate(timeout=30)
    assert [line.split(" ", 1)[1] for line in out.splitlines()] == ["hi", "bye"]
    assert (hako.state_of(name)["status"], hako.state_of(name)["exit_status"]) == ("exited", 7)
    assert hako.run("exec", name, "true").returncode == 125
    assert hako.run("logs", "--tail", "1", name).stdout == "bye\n"
    assert [pid for pid, _ in hako.processes()] == []
    hako.run("rm", name, check=True)
    assert hako.run("logs", name).returncode == 125
    hako.assert_nothing_left()


def test_kill_sends_any_signal(hako: Hako) -> None:
    """`kill -s` reaches the first process, which may do with it what it wants."""
    name = hako.detached(hako.image, "sh", "-c", "trap 'echo usr1' USR1; while :; do sleep 0.1; done")
    _wait_for("the trap", lambda: hako.run("kill", "-s", "USR1", name) and "usr1" in hako.run("logs", name).stdout)
    hako.run("kill", name, check=True)
    _wait_for("its end", lambda: hako.state_of(name)["status"] == "exited")
    assert hako.state_of(name)["exit_status"] == 137
    assert hako.run("kill", name).returncode == 1
    hako.run("rm", name, check=True)


def test_signals_of_the_client_reach_the_command(hako: Hako) -> None:
    """Without a terminal, SIGTERM to `hako run` is the command's to handle."""
    script = "trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    client = hako.popen("run", "--rm", *NONE, hako.image, "sh", "-c", script)
    assert client.stdout is not None and client.stdout.readline() == "ready\n"
    client.send_signal(signal.SIGTERM)
    assert client.communicate(timeout=30)[0] == "term\n"
    assert client.returncode == 9


def test_a_killed_client_leaves_the_container(hako: Hako) -> None:
    """SIGKILL to `hako run`: the container goes on, its output goes on into the log, and --rm still works."""
    script = "echo ready; read line < /go; echo after; sleep 1"
    client = hako.popen("run", "--rm", "--name", "orphan", *NONE, hako.image, "sh", "-c", f"mkfifo /go; {script}")
    assert client.stdout is not None and client.stdout.readline() == "ready\n"
    client.kill()
    client.wait()
    assert hako.state_of("orphan")["status"] == "running"
    hako.run("exec", "orphan", "sh", "-c", "echo > /go", check=True)
    _wait_for("output in the log", lambda: "after" in hako.run("logs", "orphan").stdout)
    hako.assert_nothing_left(30)


def test_a_reader_that_goes_away(hako: Hako) -> None:
    """`hako run --rm ... | head -1` ends, and the container with it."""
    client = hako.popen("run", "--rm", *NONE, hako.image, "yes")
    assert client.stdout is not None and client.stdout.readline() == "y\n"
    client.stdout.close()
    assert client.wait(timeout=30) == 141
    hako.assert_nothing_left(30)


def test_an_interrupted_start_leaves_nothing(hako: Hako) -> None:
    """Ctrl-C while the VM boots takes everything away."""
    client = hako.popen("run", *NONE, hako.image, "true")
    _wait_for("the pod's process", lambda: glob.glob(f"{hako.state}/pods/*/*"))
    client.send_signal(signal.SIGINT)
    assert client.wait(timeout=40) == 130
    hako.assert_nothing_left()


def test_a_killed_pod(hako: Hako) -> None:
    """When the pod's process is killed, its client says so, the container is dead, and rm takes all of it
    away.
    """
    client = hako.popen("run", "--name", "victim", *NONE, hako.image, "sh", "-c", "echo ready; sleep 600")
    assert client.stdout is not None and client.stdout.readline() == "ready\n"
    pods = [pid for pid, command in hako.processes() if command.startswith(("/usr/bin/python3 -IS", "python3"))]
    pods = [pid for pid in pods if pid != client.pid and "containerd-shim" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(pods) == 1
    os.kill(pods[0], signal.SIGKILL)
    _, err = client.communicate(timeout=30)
    assert client.returncode == 125 and "process ended" in err
    assert hako.state_of("victim")["status"] == "dead"
    hako.run("rm", "victim", check=True)
    hako.assert_nothing_left()


def test_nat(hako: Hako) -> None:
    """By default the container has an address and a default route, and its network goes with it.

    In a network namespace of the test's own, so that the host's network stays as it is.
    """
    words = hako.argv("run", "--rm", hako.image, "sh", "-c", "ip -4 addr show eth0; ip route; cat /etc/hosts")
    inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up; "$@"; ip -brief link', "sh", *words]
    done = subprocess.run(inside, env=hako.environment, capture_output=True, text=True, timeout=90, check=False)
    assert "inet 10." in done.stdout and "default via 10." in done.stdout, done.stderr
    assert "hako0" not in done.stdout
    hako.assert_nothing_left(5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: f"oci:{d}/none", "no such directory"),
        (lambda d: images.make_image(d / "empty", []), "layer"),
        (lambda d: images.make_image(d / "arm", [images.tar({"x": ""})], arch="arm64"), "arm64"),
        (lambda d: "NotLowerCase", "lower case"),
    ],
    ids=["missing", "without layers", "other architecture", "bad name"],
)
def test_bad_images(hako: Hako, tmp_path: Path, make: Callable[[Path], str], words: str) -> None:
    """An image that cannot be run is refused with the reason, and nothing is left."""
    done = hako.run("run", *NONE, make(tmp_path), "true")
    assert done.returncode == 125 and words in done.stderr, done.stderr
    hako.assert_nothing_left(5)
