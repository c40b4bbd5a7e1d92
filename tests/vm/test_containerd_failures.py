"""What a real containerd sees when processes of a pod, or containerd itself, are killed; nothing may be
left.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from shim.sandbox.store import read
from tests.framework.containerd import HAKO, Containerd
from tests.framework.ociimage import REFERENCE

pytestmark = [
    pytest.mark.vm,
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: containerd, QEMU's taps"),
]


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
    os.kill(processes_of(engine, name)[victim.format(name)], signal.SIGKILL)
    wait_for(engine, name, "STOPPED")
    assert delete(engine, name) == 137
    engine.assert_nothing_left()


@pytest.mark.every_containerd
def test_the_death_of_the_pod_process_leaves_nothing(engine: Containerd) -> None:
    """SIGKILL of the shim: containerd notices, runs `delete`, and QEMU, mounts, cgroups and files are gone."""
    name = engine.unique("dead")
    detached(engine, name)
    processes = processes_of(engine, name)
    os.kill(processes["shim"], signal.SIGKILL)
    deadline = time.monotonic() + 15
    while any(Path(f"/proc/{pid}/fd/0").exists() for pid in processes.values()):
        assert time.monotonic() < deadline, processes
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
    os.kill(processes_of(engine, name)["vmm"], signal.SIGKILL)
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


def test_a_boot_that_fails_says_why(engine: Containerd, tmp_path: Path) -> None:
    """A kernel that is none: the user reads which step failed and why, and nothing is left."""
    config = tmp_path / "bad.toml"
    tmp_path.chmod(0o755)
    (tmp_path / "vmlinux").write_bytes(b"not a kernel")
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    guest = f'kernel = "{tmp_path}/vmlinux"\nimage = "{tmp_path}/image"\n'
    config.write_text(f'[hypervisor]\naccelerator = "tcg"\n[guest]\nboot_timeout = 10\n{guest}')
    words = ("run", "--rm", "--runtime", HAKO, "--runtime-config-path", str(config), REFERENCE, engine.unique("bad"), "true")
    result = engine.ctr(*words, check=False)
    assert result.returncode == 1
    assert b"kernel" in result.stderr.lower(), result.stderr
    engine.assert_nothing_left()
