"""[share] shared_fs = "none": root filesystems as disks, small volumes as copies, no virtiofsd; and what is refused."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework import containerd
from tests.framework.containerd import HAKO, Containerd
from tests.framework.hako import Hako, Secluded, installation, secluded
from tests.framework.ociimage import REFERENCE

pytestmark = [
    pytest.mark.vm,
    pytest.mark.pods,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test"),
    pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="no mkfs.erofs: apt-get install erofs-utils"),
]
SETTINGS = '[share]\nshared_fs = "none"\n'
NONE = ("--network", "none")


@pytest.fixture(scope="module")
def hako() -> Iterator[Hako]:
    """One user of hako for all tests here."""
    with installation(SETTINGS) as hako:
        yield hako


def _run(hako: Hako, *words: str, **options: str) -> subprocess.CompletedProcess[str]:
    return hako.run("run", "--rm", *NONE, *words, **options)  # type: ignore[arg-type]


def test_what_is_written_works_and_vanishes(hako: Hako) -> None:
    """New files, changed and deleted ones of the image; the next container sees the image as it was."""
    write = "echo new > /new; echo changed >> /etc/passwd; rm /bin/ls"
    script = f"{write}; cat /new; tail -n 1 /etc/passwd; test -e /bin/ls || echo gone"
    assert _run(hako, hako.image, "sh", "-c", script).stdout == "new\nchanged\ngone\n"
    script = "test -e /new || echo none; grep -c changed /etc/passwd; test -e /bin/ls && echo there"
    done = _run(hako, hako.image, "sh", "-c", script)
    assert done.stdout == "none\n0\nthere\n"


def test_no_daemon_shares_anything(hako: Hako) -> None:
    """Neither virtiofsd nor a share directory; the guest mounts no virtio-fs."""
    name = hako.detached(hako.image, "sleep", "1000")
    assert not [command for _pid, command in hako.processes() if "virtiofsd" in command]
    assert not list(hako.state.glob("pods/*/*/share"))
    assert "virtiofs" not in hako.run("exec", name, "cat", "/proc/mounts", check=True).stdout
    hako.run("rm", "-f", name, check=True)
    hako.assert_nothing_left()


def test_a_read_only_root(hako: Hako) -> None:
    """As with virtio-fs; what the runtime mounts in it is there."""
    done = _run(hako, "--read-only", hako.image, "sh", "-c", "touch /x || cat /etc/hostname; touch /dev/shm/x && echo shm")
    assert done.stdout.endswith("shm\n") and len(done.stdout.splitlines()) == 2, done


def test_memory_bounds_what_is_written(hako: Hako) -> None:
    """The upper directory is as large as the container's memory limit."""
    fill = "dd if=/dev/zero of=/full bs=1M count=40 2>/dev/null || echo full; du -m /full | cut -f1"
    script = f"df -k / | tail -n 1 | awk '{{print $2}}'; {fill}"
    size, full, written = _run(hako, "-m", "32m", hako.image, "sh", "-c", script).stdout.split()
    assert (int(size), full) == (32 << 10, "full") and int(written) <= 32


def test_small_volumes_are_copied(hako: Hako, tmp_path: Path) -> None:
    """A file and a directory with links, read-only; what the host changes later is not seen."""
    (tmp_path / "file").write_text("one\n")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/key").write_text("value\n")
    (tmp_path / "dir/link").symlink_to("key")
    argv = ["run", "--rm", "-i", *NONE, "-v", f"{tmp_path}/file:/f:ro", "-v", f"{tmp_path}/dir:/d:ro", hako.image]
    script = "cat /f /d/link; echo x > /f || echo read-only; read line; cat /f"
    with hako.popen(*argv, "sh", "-c", script) as running:
        assert running.stdin is not None and running.stdout is not None
        assert [running.stdout.readline() for _ in range(3)] == ["one\n", "value\n", "read-only\n"]
        (tmp_path / "file").write_text("two\n")
        said, _ = running.communicate("\n", timeout=60)
    assert said == "one\n"


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        ("big:/b:ro", "volume /b: .*big: holds more than 1048576 bytes"),
        ("dir:/d", "volume /d: .*dir: it is writable"),
    ],
)
def test_other_volumes_are_refused(hako: Hako, tmp_path: Path, volume: str, words: str) -> None:
    """By name, with the option that allows them; nothing is left."""
    (tmp_path / "big").write_bytes(bytes(2 << 20))
    (tmp_path / "dir").mkdir()
    done = _run(hako, "-v", f"{tmp_path}/{volume}", hako.image, "true")
    assert done.returncode == 125
    assert re.search(words + r'.*shared_fs = "virtio-fs" allows it', done.stderr), done.stderr
    hako.assert_nothing_left()


def test_a_plain_directory_is_packed_each_time(hako: Hako, tmp_path: Path) -> None:
    """--rootfs DIR may have changed since; it is not written to."""
    (tmp_path / "bin").mkdir()
    tmp_path.chmod(0o755)
    shutil.copy("/bin/busybox", tmp_path / "bin/sh")
    for text in ("first", "second"):
        (tmp_path / "file").write_text(f"{text}\n")
        done = _run(hako, "--rootfs", str(tmp_path), "/bin/sh", "-c", "read line < /file; echo $line; echo x > /written")
        assert done.stdout == f"{text}\n", done.stderr
    assert not (tmp_path / "written").exists()


def test_nothing_is_left_of_what_was_killed(hako: Hako) -> None:
    """The VMM or the pod's process, while the container runs."""
    for mark in ("qemu-system", "containerd-shim-hako"):
        name = hako.detached(hako.image, "sleep", "1000")
        pid = next(pid for pid, command in hako.processes() if mark in command and "forkserver" not in command)
        os.kill(pid, signal.SIGKILL)
        hako.run("rm", "-f", name)
        hako.assert_nothing_left()


@pytest.fixture(scope="module")
def room() -> Iterator[Secluded]:
    """A user of hako whose every process, mount and file is known."""
    with secluded(SETTINGS) as room:
        yield room


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A root filesystem that takes a while to be packed."""
    tmp_path.chmod(0o755)
    (tmp_path / "bin").mkdir()
    shutil.copy("/bin/busybox", tmp_path / "bin/true")
    for number in range(20_000):
        (tmp_path / f"file{number}").write_bytes(b"x" * 5000)
    return tmp_path


@pytest.mark.parametrize(("victim", "words"), [("mkfs.erofs", "mkfs.erofs"), ("containerd-shim-hako-v2", "killed")])
def test_killed_while_a_root_is_packed(room: Secluded, large: Path, victim: str, words: str) -> None:
    """The packer, or the pod's process: it is told, and nothing is left; no half of an image either."""
    with room.popen("run", "--rm", *NONE, "--rootfs", str(large), "/bin/true") as running:
        room.wait_for_process("mkfs.erofs")
        room.kill(victim)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 125 and words in said, said
    room.remove_everything()
    room.assert_nothing_left()


@pytest.mark.clones
def test_no_port_is_left(room: Secluded, tmp_path: Path) -> None:
    """A clone's vsock device takes the only one: the container is refused, with the setting that helps."""
    config = tmp_path / "ports.toml"
    text = Path(room.environment["HAKO_CONFIG"]).read_text()
    config.write_text(text.replace("[hypervisor]\n", "[hypervisor]\nhotplug_ports = 1\n"))
    room.run("factory", "init", check=True, HAKO_CONFIG=str(config))
    done = room.run("run", "--rm", *NONE, room.image, "true", HAKO_CONFIG=str(config))
    room.run("factory", "destroy", check=True, HAKO_CONFIG=str(config))
    assert done.returncode == 125
    assert "all 1 hot-plug ports are in use" in done.stderr and "hotplug_ports" in done.stderr, done.stderr


class Engine(Containerd):
    """A containerd whose pods have that setting; `settings` are further ones of its own."""

    settings = ""

    def start(self) -> None:
        """With the settings."""
        file = self.directory / "config.toml"
        if self.settings not in file.read_text():
            file.write_text(file.read_text() + self.settings)
        super().start()

    def end(self, name: str) -> None:
        """Kill and delete a container."""
        self.ctr("task", "kill", "-s", "SIGKILL", name)
        self.ctr("task", "delete", "-f", name)
        self.ctr("container", "delete", name)

    def run_in_pod(self, pod: str, name: str, kind: str, *command: str, flags: tuple[str, ...] = ()) -> None:
        """A container of pod `pod`, as a CRI plugin marks it; in the background."""
        prefix = "io.kubernetes.cri."
        labels = (f"{prefix}container-type={kind}", f"{prefix}sandbox-id={pod}")
        annotations = [word for label in labels for word in ("--annotation", label)]
        self.ctr("run", "-d", "--runtime", HAKO, *annotations, *flags, REFERENCE, name, *command)


BLOCKFILE = """
[plugins."io.containerd.snapshotter.v1.blockfile"]
  scratch_file = "{directory}/scratch"
  root_path = "{directory}/blockfile"
  fs_type = "ext4"
  recreate_scratch = true
"""


@pytest.fixture(scope="module", params=["containerd", "containerd2"])
def pods(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """One containerd for the tests here; the second release has snapshotters of disks."""
    programs = containerd.second() if request.param == "containerd2" else ""
    if programs is None:
        pytest.skip("no containerd 2: python -m shim.tools --ensure containerd2")
    with containerd.short_directory() as directory:
        environment = containerd.guest_config(directory)
        with (directory / "hako.toml").open("a") as file:
            file.write(SETTINGS)
        (directory / "scratch").touch()
        os.truncate(directory / "scratch", 64 << 20)
        subprocess.run(["/sbin/mkfs.ext4", "-q", str(directory / "scratch")], check=True)
        engine = Engine(directory, environment, programs)
        if programs:
            engine.settings = BLOCKFILE.format(directory=directory)
        with engine:
            engine.import_busybox()
            yield engine
            engine.remove_everything()
            engine.assert_nothing_left()


def test_two_containers_of_a_pod(pods: Engine) -> None:
    """One disk for both, a view of their own for each; one goes and comes again while the other runs."""
    pod, second = pods.unique("p"), pods.unique("c")
    pods.run_in_pod(pod, pod, "sandbox", "sleep", "1000")
    for attempt in ("one", "two"):
        pods.run_in_pod(pod, second, "container", "sh", "-c", f"echo {attempt} >> /mark; sleep 1000")
        said = pods.ctr("task", "exec", "--exec-id", f"e{attempt}", second, "sh", "-c", "sleep 1; cat /mark")
        assert said.stdout.decode().split() == [attempt]
        assert b"mark" not in pods.ctr("task", "exec", "--exec-id", f"f{attempt}", pod, "ls", "/").stdout
        pods.end(second)
    pods.end(pod)
    pods.assert_nothing_left()


def test_what_was_written_before_is_there(pods: Engine) -> None:
    """An upper directory that is not empty is packed with the layers below, and not kept for the next container."""
    name, other = pods.unique("w"), pods.unique("o")
    pods.ctr("container", "create", "--runtime", HAKO, REFERENCE, name, "cat", "/mark")
    target = pods.directory / "mnt"
    target.mkdir(exist_ok=True)
    mount = pods.ctr("snapshot", "mounts", str(target), name).stdout.decode().split()
    subprocess.run(mount, check=True)
    (target / "mark").write_text("written before")
    subprocess.run(["umount", str(target)], check=True)
    assert pods.ctr("task", "start", name).stdout == b"written before"
    pods.ctr("task", "delete", name, check=False)
    pods.ctr("container", "delete", name)
    words = ("run", "--rm", "--runtime", HAKO, REFERENCE, other, "sh", "-c", "test -e /mark || echo none")
    assert pods.ctr(*words).stdout == b"none\n"


@pytest.mark.parametrize("pods", ["containerd2"], indirect=True)
@pytest.mark.parametrize(("snapshotter", "kept"), [("blockfile", True), ("erofs", False)])
def test_snapshots_that_are_disks(pods: Engine, snapshotter: str, kept: bool) -> None:
    """A writable block device is the root itself, and keeps what is written; erofs layers are below memory."""
    archive = str(pods.directory / "busybox.tar")
    pods.ctr("image", "import", "--local", "--snapshotter", snapshotter, archive)
    name = pods.unique(snapshotter)
    script = "test -e /x && echo again; echo x > /x; sync; grep ' / ' /proc/mounts | cut -d' ' -f3"
    pods.ctr("container", "create", "--snapshotter", snapshotter, "--runtime", HAKO, REFERENCE, name, "sh", "-c", script)
    said = []
    for _ in range(2):
        said.append(pods.ctr("task", "start", name).stdout.decode().split())
        pods.ctr("task", "delete", name, check=False)
    pods.ctr("container", "delete", name)
    kind = "ext4" if snapshotter == "blockfile" else "overlay"
    assert said == [[kind], ["again", kind] if kept else [kind]]
    pods.assert_nothing_left()


def test_a_block_device_is_a_volume(pods: Engine) -> None:
    """A file system on a device of the host: what is written is there, and the device is free after the container's end."""
    disk = pods.directory / "disk"
    disk.touch()
    os.truncate(disk, 32 << 20)
    subprocess.run(["/sbin/mkfs.ext4", "-q", str(disk)], check=True)
    argv = ["/sbin/losetup", "--show", "-f", str(disk)]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    try:
        pod, second = pods.unique("p"), pods.unique("c")
        pods.run_in_pod(pod, pod, "sandbox", "sleep", "1000")
        mount = ("--mount", f"type=ext4,src={device},dst=/data,options=rw")
        for attempt in ("one", "two"):
            script = f"echo {attempt} >> /data/file; cat /data/file; sync; sleep 1000"
            pods.run_in_pod(pod, second, "container", "sh", "-c", script, flags=mount)
            said = pods.ctr("task", "exec", "--exec-id", f"e{attempt}", second, "sh", "-c", "sleep 1; cat /data/file")
            pods.end(second)
        assert said.stdout == b"one\ntwo\n"
        pods.end(pod)
    finally:
        subprocess.run(["/sbin/losetup", "-d", device], check=True)
    pods.assert_nothing_left()
