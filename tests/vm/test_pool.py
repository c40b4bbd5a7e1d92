"""VMs that wait for pods: who gets one, that it is unlike all others, and that nothing is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.hypervisor import vsock
from tests.framework.containerd import HAKO, Containerd, guest_config, short_directory
from tests.framework.hako import Hako, installation
from tests.framework.ociimage import REFERENCE

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test"),
]
SIZE = 2
POOL = f"[factory]\npool = {SIZE}\n"
SECONDS = 90.0  # for whatever is made in the background on a busy machine


@pytest.fixture
def hako() -> Iterator[Hako]:
    """A user of hako whose pool is full."""
    with installation(POOL) as hako:
        hako.run("factory", "init", check=True)
        try:
            _until_full(hako)
            yield hako
            hako.remove_everything()
        finally:
            hako.run("factory", "destroy", check=True)


def _until(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)


def _pool(hako: Hako) -> dict[str, Any]:
    """Its state; {} if there is no forkserver."""
    found = json.loads(hako.run("factory", "status", "--json", check=True).stdout)["pools"]
    return dict(found[0]) if found else {}


def _until_full(hako: Hako) -> None:
    _until("a full pool", lambda: len(_pool(hako).get("ready", ())) == SIZE and not _pool(hako)["making"])


def _vmms(hako: Hako) -> list[int]:
    """QEMUs below the processes of the pool."""
    return [pid for pid, command in hako.processes() if "qemu-system" in command and "-name hako-" in command]


def _in_cgroup(hako: Hako, cgroup: str) -> dict[int, str]:
    """Command lines of our processes there."""
    found = {}
    for pid, command in hako.processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if cgroup in Path(f"/proc/{pid}/cgroup").read_text():
                found[pid] = command
    return found


def _steps(hako: Hako, name: str) -> str:
    return hako.run("trace", name, check=True).stdout


def test_pods_get_them_and_no_two_are_alike(hako: Hako) -> None:
    """More pods than the pool is large, one after the other and two at once: a new VM for each, with all of its own."""
    script = (
        "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '; cat /proc/sys/kernel/random/uuid;"
        "cat /proc/sys/kernel/random/boot_id; cut -d' ' -f28 /proc/self/stat; hostname; date +%s; ls /bin/busybox"
    )
    seen = []
    for number in range(4):
        awaited = number != 1  # the second comes while the pool is being filled again, and gets what is there
        if awaited:
            _until_full(hako)
        name = hako.detached("--hostname", f"box{number}", hako.image, "sleep", "1000")
        assert not awaited or "fit" in _steps(hako, name), "it came from the pool"
        said = hako.run("exec", name, "sh", "-c", script, check=True).stdout.split()
        assert said[4] == f"box{number}"
        assert abs(int(said[5]) - time.time()) < 5
        assert said[6] == "/bin/busybox"
        seen.append(said[:4])
        assert hako.run("run", "--rm", "--network", "none", hako.image, "echo", "hello", check=True).stdout == "hello\n"
    for what, values in zip(("random", "uuid", "boot id", "stack"), zip(*seen, strict=True), strict=True):
        assert len(set(values)) == 4, f"{what}: {values}"
    assert _pool(hako)["hits"] >= 6


def test_what_a_pod_has_of_its_own(hako: Hako) -> None:
    """Memory beyond the VM's, limits, a volume, a network card; the traces of the throw-away container are gone."""
    volume = hako.directory / "volume"
    volume.mkdir()
    (volume / "file").write_text("mine\n")
    name = hako.run(
        "run", "-d", "--network", "none", "-m", "200m", "-v", f"{volume}:/data", hako.image, "sleep", "1000", check=True
    ).stdout.strip()
    assert "fit" in _steps(hako, name)
    script = "cat /data/file; cat /sys/fs/cgroup/memory.max; grep MemTotal /proc/meminfo | tr -dc 0-9; echo; ps | wc -l"
    said = hako.run("exec", name, "sh", "-c", script, check=True).stdout.split()
    assert said[:2] == ["mine", str(200 << 20)]
    assert int(said[2]) > 400 << 10, "256 MiB and 256 MiB plugged"
    (directory,) = [path for path in (hako.state / "pool").iterdir() if (path / "share" / name).exists()]
    assert [path.name for path in (directory / "share").iterdir()] == [name]
    pods = _in_cgroup(hako, f"hako_{name}")
    programs = ["qemu-system", "/virtiofsd", *([] if vsock.kernel_has_vsock() else ["vhost-device-vsock "])]
    for program in programs:
        assert any(program in command for command in pods.values()), f"{program} is not in the pod's cgroup: {pods}"
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pods} == {0}, "they are as important as others"


def test_a_pod_that_none_fits(hako: Hako) -> None:
    """Another number of vCPUs, another configuration file: the pod starts in the usual way, and a VM is thrown away."""
    odd = hako.detached("--cpus", "1", hako.image, "sleep", "1000")
    assert "fit" not in _steps(hako, odd)
    _until_full(hako)
    other = hako.directory / "other.toml"
    other.write_text(Path(hako.environment["HAKO_CONFIG"]).read_text().replace(POOL, ""))
    before = _pool(hako)
    done = hako.run("run", "--rm", "--network", "none", hako.image, "echo", "hello", check=True, HAKO_CONFIG=str(other))
    assert done.stdout == "hello\n"
    assert _pool(hako)["ready"] == before["ready"]


def test_a_vm_that_is_killed_is_replaced(hako: Hako) -> None:
    """In the pool; and one that dies under its pod's hands costs the pod nothing but time."""
    vmm = _vmms(hako)[0]
    before = set(_pool(hako)["ready"])
    os.kill(vmm, signal.SIGKILL)
    _until("another one", lambda: len(set(_pool(hako).get("ready", ())) - before) == 1)
    _until_full(hako)
    for vmm in _vmms(hako):  # it is stopped, not dead: nobody notices before a pod wants it
        os.kill(vmm, signal.SIGKILL)
    done = hako.run("run", "--rm", "--network", "none", hako.image, "echo", "hello", check=True)
    assert done.stdout == "hello\n"


def test_nothing_is_left_of_a_forkserver_that_is_killed(hako: Hako) -> None:
    """No VM, no daemon, no directory; a pod from the pool goes on, and so does one whose process is killed: `rm` cleans up."""
    name = hako.detached(hako.image, "sleep", "1000")
    _until_full(hako)
    server = next(pid for pid, command in hako.processes() if "forkserver" in command)
    os.kill(server, signal.SIGKILL)
    _until("one VM is left, the pod's", lambda: len(_vmms(hako)) == 1)
    assert hako.run("exec", name, "echo", "hello", check=True).stdout == "hello\n"
    _until("one directory is left", lambda: len(list((hako.state / "pool").iterdir())) == 1)
    pod = next(pid for pid, command in hako.processes() if f"-id {name}" in command and "start" in command)
    os.kill(pod, signal.SIGKILL)
    hako.run("rm", "-f", name, check=True)
    hako.assert_nothing_left()


@pytest.mark.engine
def test_an_engines_pods_get_them() -> None:
    """containerd's first pod begins the pool, and a later one gets a VM of it: its output, status and end are as ever."""
    with short_directory() as directory:
        environment = guest_config(directory)
        with Path(environment["HAKO_CONFIG"]).open("a") as file:
            file.write(POOL)
        with Containerd(directory, environment) as engine:
            engine.import_busybox()

            def order(word: str) -> list[dict[str, Any]]:
                argv = [str(engine.bin_dir / "containerd-shim-hako-v2"), "-id", word, "pool"]
                done = subprocess.run(argv, env=engine.environment, capture_output=True, timeout=30, check=True)
                return list(json.loads(done.stdout))

            try:
                first, second = engine.unique("p1"), engine.unique("p2")
                engine.ctr("run", "-d", "--runtime", HAKO, REFERENCE, first, "sleep", "1000")
                _until("a full pool", lambda: any(len(pool["ready"]) == SIZE for pool in order("status")))
                command = ("sh", "-c", "echo hello; exit 3")
                said = engine.ctr("run", "--rm", "--runtime", HAKO, REFERENCE, second, *command, check=False)
                assert (said.stdout, said.returncode) == (b"hello\n", 3)
                assert order("status")[0]["hits"] == 1
            finally:
                order("end")


def test_what_a_profile_forbids_is_forbidden(hako: Hako) -> None:
    """In a pod of the pool, too, and for a further process."""
    _until_full(hako)
    name = hako.detached(hako.image, "sleep", "1000")
    assert "fit" in _steps(hako, name)
    assert hako.run("exec", name, "grep", "Seccomp:", "/proc/self/status", check=True).stdout.split() == ["Seccomp:", "2"]
    assert hako.run("exec", name, "unshare", "-n", "true").returncode != 0


def test_the_pool_is_ended(hako: Hako) -> None:
    """By `hako factory destroy`: no process and no file of it is left."""
    assert f"Pool: {SIZE} of {SIZE} VMs wait" in hako.run("factory", "status", check=True).stdout
    hako.run("factory", "destroy", check=True)
    hako.assert_nothing_left()
