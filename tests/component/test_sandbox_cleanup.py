"""`delete` after a crash: everything in the state file goes, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.errors import HakoError
from shim.sandbox import cleanup, store
from shim.task import delete, flags
from tests.framework.containerd import short_directory

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")

# Makes a store with what it is told, says so, and waits to be killed: a pod process that will crash.
OWNER = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from shim.sandbox.store import Store
made = Store.create(sys.argv[2], "pod1", "ns")
made.change(lambda state: state.update(json.loads(sys.argv[3])))
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where the pod is."""
    with short_directory() as directory:
        yield directory


class Crashed:
    """A pod whose process is killed after it wrote its state."""

    def __init__(self, directory: Path, **state: object) -> None:
        self.pod = directory / "pods/ns/pod1"
        root = str(Path(__file__).resolve().parents[2])
        argv = [sys.executable, "-c", OWNER, root, str(self.pod), json.dumps(state)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self.process.stdout is not None and self.process.stdout.readline() == b"ready\n"

    def die(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


def sleeper() -> subprocess.Popen[bytes]:
    """A process that could be a daemon of the pod."""
    return subprocess.Popen(["/bin/sleep", "1000"])


def entry(name: str, process: subprocess.Popen[bytes], shift: int = 0) -> dict[str, object]:
    """A process as the state file has it; `shift` makes its start time another one's."""
    return {"name": name, "pid": process.pid, "start_time": store.start_time(process.pid) + shift}


def bind(source: Path, target: Path) -> None:
    """A mount as the pod would have made it."""
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)


def test_everything_of_the_pod_goes(directory: Path) -> None:
    """Processes, mounts in bundle and share, sockets, the directory; what was mounted stays whole."""
    data = directory / "data"
    data.mkdir()
    (data / "precious").write_text("x")
    rootfs, socket_path, daemon_dir = directory / "b/rootfs", directory / "sock", directory / "sock.d"
    daemon_dir.mkdir()
    for path in (socket_path, daemon_dir / "vsock.sock"):
        path.touch()
    daemon, stub = sleeper(), sleeper()
    crashed = Crashed(
        directory,
        processes=[entry("vmm", daemon), entry("stub of c1", stub)],
        paths=[str(daemon_dir)],
        containers={"c1": {"bundle": str(directory / "b"), "mounts": [str(rootfs)], "cgroups": []}},
    )
    bind(data, rootfs)
    bind(data, crashed.pod / "share")
    bind(data, crashed.pod / "share/deep")
    crashed.die()
    assert cleanup.clean_up(str(crashed.pod), str(socket_path), "c1") == stub.pid
    assert daemon.wait(5) == stub.wait(5) == -9
    assert not os.path.ismount(rootfs)
    assert not (directory / "pods").joinpath("ns").exists()
    assert not socket_path.exists() and not daemon_dir.exists()
    assert (data / "precious").read_text() == "x"


def test_a_living_pod_is_left_alone(directory: Path) -> None:
    """While its process holds the lock nothing is touched."""
    daemon = sleeper()
    living = Crashed(directory, processes=[entry("vmm", daemon)])
    began = time.monotonic()
    assert cleanup.clean_up(str(living.pod), str(directory / "sock")) == 0
    assert time.monotonic() - began < 4
    assert daemon.poll() is None and (living.pod / "state.json").exists()
    living.die()
    daemon.kill()
    daemon.wait()


def test_a_pod_that_begins_while_its_process_is_ended(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`delete` found no state yet; the process, killed by somebody meanwhile, had written some when it was gone."""
    monkeypatch.setenv("HAKO_STATE_DIR", str(directory))
    began: list[Crashed] = []

    def end_unused(_socket: str, _container: str) -> None:
        began.append(Crashed(directory))
        began[0].die()

    monkeypatch.setattr(delete, "_end_unused", end_unused)
    invocation = flags.parse(["-namespace", "ns", "-id", "pod1", "-bundle", str(directory), "delete"])
    delete.delete(invocation)
    assert began and not began[0].pod.exists()


def test_a_pid_that_is_somebody_elses_now_is_not_killed(directory: Path) -> None:
    """Another start time: another process."""
    stranger = sleeper()
    crashed = Crashed(directory, processes=[entry("vmm", stranger, shift=-5)])
    crashed.die()
    cleanup.clean_up(str(crashed.pod), str(directory / "sock"))
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_parents_of_cgroups_go_unless_somebody_else_is_there(directory: Path) -> None:
    """Those that the pod had to make, the deepest first."""
    made = [directory / "cg/a/b", directory / "cg/a", directory / "cg"]
    crashed = Crashed(directory, cgroups=[str(made[0] / "hako_pod1")], cgroup_parents=[str(path) for path in made])
    (made[0] / "hako_pod1").mkdir(parents=True)
    (directory / "cg/another").mkdir()
    crashed.die()
    cleanup.clean_up(str(crashed.pod), str(directory / "sock"))
    assert [path.exists() for path in made] == [False, False, True]


def test_twice_and_without_anything(directory: Path) -> None:
    """A second call, a missing directory and an unreadable state are all fine."""
    crashed = Crashed(directory)
    crashed.die()
    for _ in range(2):
        assert cleanup.clean_up(str(crashed.pod), str(directory / "sock")) == 0
    crashed.pod.mkdir(parents=True)
    (crashed.pod / "state.json").write_text("{")
    cleanup.clean_up(str(crashed.pod), str(directory / "sock"))
    assert not crashed.pod.exists()


def test_a_full_disk(directory: Path) -> None:
    """A state that cannot be written is an error that names the file; what was there stays, and all of it can go."""
    root = directory / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(root)], check=True)
    made = store.Store.create(str(root / "ns/pod1"), "pod1", "ns")
    with pytest.raises(HakoError, match=r"state\.json: No space left on device"):
        made.change(lambda state: state["paths"].append("x" * 100_000))
    found = store.read(str(root / "ns/pod1"))
    assert found is not None and found["paths"] == []
    (root / "filler").write_bytes(bytes(32 << 10))
    with pytest.raises(HakoError, match="keep the pod's state"):
        for number in range(100):
            store.Store.create(str(root / f"ns/more{number}"), "more", "ns")
    made.remove()
    assert not (root / "ns/pod1").exists()


def test_mount_points_with_odd_names_are_found(directory: Path) -> None:
    """mountinfo writes spaces as octal."""
    target = directory / "a b/c\\d"
    bind(directory, target)
    assert cleanup.mounts_below(str(directory / "a b")) == [str(target)]
    subprocess.run(["umount", str(target)], check=True)
