"""What a real containerd sees when processes of a pod, or containerd itself, are killed at any moment.

Everything runs in a room (framework/secluded.py); after each test it holds what it held before: no process, mount, socket,
link, cgroup or file more.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.sandbox.store import read
from tests.framework import secluded
from tests.framework.containerd import HAKO, Result, second
from tests.framework.ociimage import REFERENCE
from tests.framework.secluded import SecludedContainerd as Containerd

pytestmark = [
    pytest.mark.vm,
    pytest.mark.pods,
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: containerd, QEMU's taps"),
]


PARTS = {"qemu-system": "", "virtiofsd": "", "vhost-device-vsock": "", "containerd-shim-hako-v2": " start"}
"""A word of each part's command line, and how that ends."""


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[Containerd]:
    """One containerd for the tests of this module, in a room."""
    programs = second() if request.param == "containerd2" else ""
    if programs is None:
        pytest.skip("no containerd 2: python -m shim.tools --ensure containerd2")
    with secluded.containerd(programs) as engine:
        yield engine


@pytest.fixture(autouse=True)
def nothing_left(engine: Containerd) -> Iterator[None]:
    """The inventory, once what the test has not removed itself was removed as a user would."""
    yield
    engine.remove_everything()
    try:
        engine.assert_nothing_left()
    finally:
        engine.before = engine.room.inventory()


def kill_part(engine: Containerd, part: str) -> int:
    """SIGKILL to every process of a part of the pod; how many there were."""
    found = [pid for pid, command in engine.processes() if part in command and command.endswith(PARTS[part])]
    for pid in found:
        engine.kill(pid)
    return len(found)


def detached(engine: Containerd, name: str, *command: str, flags: tuple[str, ...] = ()) -> None:
    """A container in the background."""
    engine.ctr("run", "-d", "--runtime", HAKO, *flags, REFERENCE, name, *(command or ("sleep", "1000")))


def processes_of(engine: Containerd, name: str) -> dict[str, int]:
    """Name -> pid of the pod's processes from its state file; "shim" is the pod process itself."""
    state = read(str(engine.state_dir / "pods/default" / name))
    assert state is not None
    return {"shim": state["pid"]} | {item["name"]: item["pid"] for item in state["processes"]}


def wait_for(engine: Containerd, name: str, status: str | None, timeout: float = 20) -> None:
    """Until the task has this status; None: until there is no such task."""
    deadline = time.monotonic() + timeout
    while (now := engine.tasks().get(name)) != status:
        assert time.monotonic() < deadline, f"{name} is {now}, not {status}"
        time.sleep(0.05)


def delete(engine: Containerd, name: str) -> int:
    """Delete an ended task and its container; the status."""
    said = engine.ctr("task", "delete", name, check=False)
    engine.ctr("container", "delete", name)
    found = re.search(rb"exit code (\d+)", said.stderr)
    assert found or not said.returncode, said.stderr + engine.log_tail().encode()
    return int(found[1]) if found else 0


@pytest.mark.parametrize("victim", ["vmm", "virtiofsd", "stub of {}"])
def test_the_end_of_any_part_is_the_end_of_the_container(engine: Containerd, victim: str) -> None:
    """SIGKILL of QEMU, virtiofsd or the stub: the task is STOPPED with 137 and can be deleted."""
    name = engine.unique(f"k{victim[0]}")
    detached(engine, name)
    engine.kill(processes_of(engine, name)[victim.format(name)])
    wait_for(engine, name, "STOPPED")
    assert delete(engine, name) == 137
    engine.assert_nothing_left()


@pytest.mark.every_containerd
def test_the_death_of_the_pod_process_leaves_nothing(engine: Containerd) -> None:
    """SIGKILL of the shim: containerd notices, runs `delete`, and QEMU, mounts, cgroups and files are gone."""
    name = engine.unique("dead")
    detached(engine, name)
    processes = processes_of(engine, name)
    engine.kill(processes["shim"])
    deadline = time.monotonic() + 15
    while left := [pid for pid, _ in engine.processes() if pid in processes.values()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    engine.ctr("task", "delete", "-f", name, check=False)
    wait_for(engine, name, None)
    engine.ctr("container", "delete", name)
    engine.assert_nothing_left()


def test_a_foreground_client_hears_of_the_death(engine: Containerd) -> None:
    """`ctr run` in the foreground returns when the VM is killed, with what was written before."""
    name = engine.unique("fg")
    running = engine.popen("run", "--rm", "--runtime", HAKO, REFERENCE, name, "sh", "-c", "echo before; sleep 1000")
    assert running.stdout is not None
    assert running.stdout.readline() == b"before\n"
    engine.kill(processes_of(engine, name)["vmm"])
    assert running.wait(20) == 137
    engine.assert_nothing_left()


@pytest.mark.every_containerd
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_containers_survive_a_restart_of_containerd(engine: Containerd, number: int) -> None:
    """The running container is there afterwards, takes an exec, and its output was not lost."""
    name = engine.unique(f"s{number}")
    out = engine.directory / f"out{number}"
    script = "while :; do echo tick; sleep 0.1; done"
    detached(engine, name, "sh", "-c", script, flags=("--log-uri", f"file://{out}"))
    before = processes_of(engine, name)
    engine.restart(number)
    assert engine.tasks()[name] == "RUNNING"
    assert processes_of(engine, name) == before
    result = engine.ctr("task", "exec", "--exec-id", "after", name, "echo", "still here")
    assert result.stdout == b"still here\n"
    size = out.stat().st_size
    time.sleep(0.5)
    assert out.stat().st_size > size > 0
    engine.ctr("task", "kill", "-s", "SIGKILL", name)
    wait_for(engine, name, "STOPPED")
    assert delete(engine, name) == 137
    engine.assert_nothing_left()


def test_an_exit_while_containerd_is_away_is_not_lost(engine: Containerd) -> None:
    """A container that ends meanwhile is STOPPED or gone when containerd is back, and leaves nothing."""
    name = engine.unique("away")
    detached(engine, name, "sleep", "3")
    engine.stop(signal.SIGKILL)
    time.sleep(4)
    engine.start()
    assert engine.tasks().get(name) in ("STOPPED", None)
    engine.ctr("task", "delete", "-f", name, check=False)
    engine.ctr("container", "delete", name)
    engine.assert_nothing_left()


def test_a_pod_of_several_containers(engine: Containerd) -> None:
    """Containers of one sandbox share the VM; one can go and come again; the sandbox's end is the end of
    all.
    """
    base = "io.kubernetes.cri"
    pod, member = engine.unique("pod"), engine.unique("member")

    def flags(kind: str) -> tuple[str, ...]:
        return ("--annotation", f"{base}.container-type={kind}", "--annotation", f"{base}.sandbox-id={pod}")

    detached(engine, pod, flags=flags("sandbox"))
    vmm = processes_of(engine, pod)["vmm"]
    for _ in range(2):
        detached(engine, member, flags=flags("container"))
        assert processes_of(engine, pod)["vmm"] == vmm
        kernels = {
            engine.ctr("task", "exec", "--exec-id", f"u{name}", name, "cat", "/proc/sys/kernel/random/boot_id").stdout
            for name in (pod, member)
        }
        assert len(kernels) == 1
        engine.ctr("task", "kill", "-s", "SIGKILL", member)
        wait_for(engine, member, "STOPPED")
        assert delete(engine, member) == 137
    detached(engine, member, flags=flags("container"))
    engine.ctr("task", "kill", "-s", "SIGKILL", pod)
    wait_for(engine, member, "STOPPED")
    wait_for(engine, pod, "STOPPED")
    for name in (member, pod):
        assert delete(engine, name) == 137
    engine.assert_nothing_left()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("moment", [0.0, 0.3])
def test_a_part_that_dies_during_the_start(engine: Containerd, part: str, moment: float) -> None:
    """Killed at its first sight or some tenths of a second later: ctr fails at once and says why, or it was too late."""
    name = engine.unique(f"m{moment}")
    client = engine.popen("run", "--rm", "--runtime", HAKO, REFERENCE, name, "sh", "-c", "sleep 1; echo done")
    deadline = time.monotonic() + 60
    while not any(part in command for _, command in engine.processes()):
        assert time.monotonic() < deadline
    time.sleep(moment)
    while not kill_part(engine, part) and client.poll() is None:
        pass
    out, err = client.communicate(timeout=40)
    assert (client.returncode, out) == (0, b"done\n") or (client.returncode in (1, 137, 255) and (err or out == b"")), err


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_dies_during_an_exec(engine: Containerd, part: str) -> None:
    """The exec ends with its container, and both can be deleted."""
    name = engine.unique("ex")
    detached(engine, name)
    client = engine.popen("task", "exec", "--exec-id", "e", name, "sh", "-c", "echo ready; sleep 600")
    assert client.stdout is not None and client.stdout.readline() == b"ready\n"
    kill_part(engine, part)
    client.communicate(timeout=40)
    assert client.returncode in (1, 137, 255)
    engine.ctr("task", "delete", "-f", name, check=False)
    wait_for(engine, name, None)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_dies_during_the_delete(engine: Containerd, part: str) -> None:
    """The container goes all the same, and everything of its pod."""
    name = engine.unique("de")
    detached(engine, name)
    client = engine.popen("task", "delete", "-f", name)
    while client.poll() is None:
        kill_part(engine, part)
    engine.ctr("task", "delete", "-f", name, check=False)
    wait_for(engine, name, None)
    engine.ctr("container", "delete", name)
    engine.assert_nothing_left()


@pytest.mark.parametrize("moment", [0.1, 0.6])
def test_a_containerd_that_dies_during_the_start(engine: Containerd, moment: float) -> None:
    """Killed in the middle of `ctr run`: after its return, what was begun can be deleted."""
    name = engine.unique(f"c{moment}")
    client = engine.popen("run", "-d", "--runtime", HAKO, REFERENCE, name, "sleep", "600")
    time.sleep(moment)
    engine.restart(signal.SIGKILL)
    client.kill()
    client.communicate(timeout=20)
    time.sleep(1)  # its cleaning up of what it finds goes on after it answers
    engine.ctr("task", "delete", "-f", name, check=False)
    wait_for(engine, name, None)
    engine.ctr("container", "delete", name, check=False)
    engine.assert_nothing_left(timeout=20)


def refused(engine: Containerd, config: Path, text: str) -> Result:
    """`ctr run` with a configuration."""
    config.write_text(text)
    config.parent.chmod(0o755)
    words = ("run", "--rm", "--runtime", HAKO, "--runtime-config-path", str(config), REFERENCE, engine.unique("bad"), "true")
    result = engine.ctr(*words, check=False)
    assert result.returncode == 1
    return result


@pytest.mark.every_containerd
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[guest]\nkernle = '/x'\n", b"bad.toml:2: guest.kernle: there is no such key"),
        ("[guest\n", b"not TOML"),
        ("[guest]\nkernel = '/etc/passwd'\n", b"/etc/passwd: is not a kernel"),
        ("[hypervisor]\naccelerator = 'tcg'\n[guest]\nkernel_params = 'init=/none rdinit=/none'\n", b"Kernel panic"),
        ("[share]\ndaemon = '/none/virtiofsd'\n", b"/none/virtiofsd: there is no such program"),
    ],
    ids=["unknown key", "not TOML", "kernel", "panic", "virtiofsd"],
)
def test_a_configuration_that_cannot_work(engine: Containerd, tmp_path: Path, text: str, words: bytes) -> None:
    """The user of ctr reads what is wrong."""
    result = refused(engine, tmp_path / "bad.toml", text)
    assert words in result.stderr, result.stderr
    engine.assert_nothing_left()
