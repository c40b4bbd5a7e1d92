"""What a user of `hako run` sees when something is wrong: a message that names it, 125, and nothing left.

Everything runs in a room (framework/room.py); after each test the room holds what it held before: no process, mount,
socket, link, cgroup, packet filter table or file more. Every wait has a deadline, which is pytest's at the latest.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.api import agent_pb2, empty_pb2
from agent.ttrpc.client import Client
from tests.framework import guestboot, images
from tests.framework.hako import Result, Secluded, new_cache, secluded

pytestmark = [
    pytest.mark.vm,
    pytest.mark.pods,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test"),
]
NONE = ("--network", "none")
QEMU, VIRTIOFSD, VSOCK, POD = "qemu-system", "virtiofsd", "vhost-device-vsock", "containerd-shim-hako-v2"
ENDINGS = {POD: " start"}  # of its command line; what takes a pod away is the same program
PARTS = (QEMU, VIRTIOFSD, VSOCK, POD)
NAMES = {
    QEMU: ("QEMU was killed", "the VM has ended"),  # during the boot, and later
    VIRTIOFSD: ("virtiofsd was killed by SIGKILL",),
    VSOCK: ("vhost-device-vsock",),
    POD: ("the container's process ended without a word: it was killed", "start: was killed by SIGKILL"),
}


@pytest.fixture(scope="module")
def hako() -> Iterator[Secluded]:
    """One user of hako for all tests here."""
    with secluded() as hako:
        yield hako


@pytest.fixture(autouse=True)
def nothing_left(hako: Secluded) -> Iterator[None]:
    """The inventory, once what the test has not removed itself was removed as a user would."""
    yield
    hako.remove_everything()
    try:
        hako.assert_nothing_left()
    finally:
        hako.before = hako.room.inventory()  # what one test has left is not told again by the others


def _configured(hako: Secluded, directory: Path, **changes: str | int | bool) -> str:
    """The path of a configuration like the usual one, with `section__key=value` changed or added."""
    path = directory / "changed.toml"
    tables = tomllib.loads(Path(hako.environment["HAKO_CONFIG"]).read_text())
    for name, value in changes.items():
        section, _, key = name.partition("__")
        tables.setdefault(section, {})[key] = value
    lines = []
    for section, table in tables.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def _refused(done: Result, words: str) -> None:
    """One line that names what is wrong, and hako's own status."""
    assert done.returncode == 125 and words in done.stderr, (done.returncode, done.stderr)
    assert done.stderr.startswith("hako: ") and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def _ready(client: subprocess.Popen[str]) -> None:
    assert client.stdout is not None and client.stdout.readline() == "ready\n", client.communicate()[1]


def _kill(hako: Secluded, part: str, number: int = 9) -> int:
    """Send a signal to every process of a part of the pod that is there now; how many there were."""
    found = [pid for pid, command in hako.processes() if part in command and command.endswith(ENDINGS.get(part, ""))]
    for pid in found:
        hako.room.kill(pid, number)
    return len(found)


class Usual(NamedTuple):
    """How long a whole run takes here, in seconds."""

    template: float
    boot: float


@pytest.fixture(scope="module")
def usual(hako: Secluded, tmp_path_factory: pytest.TempPathFactory) -> Usual:
    """Measured once."""
    cold = _configured(hako, tmp_path_factory.mktemp("usual"), factory__template=False)
    times = []
    for config in (hako.environment["HAKO_CONFIG"], cold):
        begin = time.monotonic()
        hako.run("run", "--rm", *NONE, hako.image, "true", check=True, HAKO_CONFIG=config)
        times.append(time.monotonic() - begin)
    return Usual(*times)


# --- what is missing or wrong before anything runs ---------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guest__kernel": "/none/vmlinux"}, "boot: /none/vmlinux: there is no such file"),
        ({"guest__kernel": "/etc/passwd"}, "boot: /etc/passwd: is not a kernel"),
        ({"guest__image": "/none/image.erofs"}, "boot: /none/image.erofs: there is no such file"),
        ({"guest__image": "/bin/sh"}, "boot: /bin/sh: is not an erofs"),
        ({"guest__initrd": "/bin/sh"}, "guest console: "),
        ({"guest__kernel_params": "init=/none rdinit=/none"}, "Kernel panic - not syncing: "),
        ({"hypervisor__default_memory": 9999999}, "hypervisor.default_memory: a VM of 9999999 MiB memory does not fit"),
        ({"hypervisor__path": "/none/qemu"}, "/none/qemu: there is no such program"),
        ({"hypervisor__path": "/bin/false"}, "boot: QEMU exited with status 1"),
        ({"hypervisor__cpu_model": "nosuch"}, "unable to find CPU model 'nosuch'"),
        ({"hypervisor__nmae": "qemu"}, "hypervisor.nmae: there is no such key (allowed: name, path"),
        ({"hypervisor__machine_type": "pc"}, "allowed: 'q35', 'microvm'"),
        ({"vsock__daemon": "/none/vsock"}, "vsock: /none/vsock: there is no such program"),
        ({"vsock__daemon": "/bin/false"}, "/bin/false --vm"),
        ({"share__daemon": "/none/virtiofsd"}, "/none/virtiofsd: there is no such program"),
        ({"share__daemon": "/bin/false"}, "/bin/false --version: exited with status 1"),
    ],
    ids=lambda value: "=".join(map(str, *value.items())) if isinstance(value, dict) else "",
)
def test_a_configuration_that_cannot_work(hako: Secluded, tmp_path: Path, changes: dict[str, str | int], words: str) -> None:
    """Kernel, image, memory, programs, unknown keys: the message names what is wrong."""
    config = _configured(hako, tmp_path, **changes)
    _refused(hako.run("run", *NONE, hako.image, "true", HAKO_CONFIG=config), words)


def test_a_kernel_for_another_processor(hako: Secluded, tmp_path: Path) -> None:
    """It is named as that, before a VM is begun."""
    (tmp_path / "vmlinux").write_bytes(guestboot.elf(machine=183))
    config = _configured(hako, tmp_path, guest__kernel=f"{tmp_path}/vmlinux")
    _refused(hako.run("run", *NONE, hako.image, "true", HAKO_CONFIG=config), "for another architecture (arm64)")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"[guest\n", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        (b"[guest]\nboot_timeout = 'soon'\n", "x.toml:2: guest.boot_timeout: "),
    ],
    ids=["missing", "not TOML", "not text", "wrong type"],
)
def test_an_unreadable_configuration(hako: Secluded, tmp_path: Path, content: bytes | None, words: str) -> None:
    """File, line and key are named."""
    if content is not None:
        (tmp_path / "x.toml").write_bytes(content)
    _refused(hako.run("run", *NONE, hako.image, "true", HAKO_CONFIG=f"{tmp_path}/x.toml"), words)


def test_no_memory_for_the_machine(hako: Secluded, tmp_path: Path) -> None:
    """The host's refusal is quoted."""
    config = _configured(hako, tmp_path, hypervisor__default_memory=16_000)
    words = [*hako.room.enter, "prlimit", f"--as={4 << 30}", f"{hako.bin}/hako", "run", *NONE, hako.image, "true"]
    done = subprocess.run(
        words, env=hako.environment | {"HAKO_CONFIG": config}, capture_output=True, text=True, timeout=60, check=False
    )
    _refused(done, "Cannot allocate memory")


def test_no_tun(hako: Secluded) -> None:
    """Without /dev/net/tun a container with a network is refused, naming it; the network goes again."""
    script = 'mount -t tmpfs none /dev/net && exec "$@"'
    inside = [*hako.room.enter, "unshare", "--mount", "sh", "-c", script, "sh", f"{hako.bin}/hako", "run", hako.image, "true"]
    done = subprocess.run(inside, env=hako.environment, capture_output=True, text=True, timeout=90, check=False)
    _refused(done, "/dev/net/tun")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["run"], "name an image"),
        (["run", "--nmae", "x", "image"], "unknown option --nmae"),
        (["run", "-p", "80:80", "image"], "unknown option -p"),
        (["run", "--memory", "much", "image"], "not an amount of memory: 'much'"),
        (["run", "--network", "bridge", "image"], "no such network: 'bridge'"),
        (["run", "--network", "netns:/none", "image"], "/none does not exist"),
        (["run", "-v", "/none:/x", "image"], "/none does not exist"),
        (["run", "--env-file", "/none", "image"], "/none: No such file"),
        (["run", "-it", "image"], "not a terminal"),
        (["exec", "nosuch", "true"], "no such container: nosuch"),
        (["exec", "nosuch"], "name a container and a command"),
        (["logs", "nosuch"], "no such container: nosuch"),
        (["stop"], "name at least one container"),
        (["kill", "-s", "NOSUCH", "x"], "no such signal: 'NOSUCH'"),
        (["frobnicate"], "no such command: frobnicate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words(hako: Secluded, words: list[str], reason: str) -> None:
    """A wrong command line is told in one line on stderr."""
    done = hako.run(*words)
    _refused(done, reason)
    assert done.stdout == ""


def test_options_that_the_image_or_host_cannot_give(hako: Secluded, tmp_path: Path) -> None:
    """A user that the image has not, a capability or profile that does not exist: refused by name."""
    (tmp_path / "profile.json").write_text("not JSON")
    for option, reason in (
        (("-u", "nosuch"), "no user 'nosuch'"),
        (("--cap-add", "NOSUCH"), "NOSUCH"),
        (("--security-opt", f"seccomp={tmp_path}/profile.json"), "profile.json"),
        (("--security-opt", "seccomp=/none.json"), "/none.json"),
        (("-v", f"{tmp_path}:/"), "root"),
    ):
        _refused(hako.run("run", *NONE, *option, hako.image, "true"), reason)


def test_images_that_cannot_run(hako: Secluded, tmp_path: Path) -> None:
    """Missing, without layers, empty, for another processor: refused with the reason."""
    cache = new_cache(tmp_path / "cache")
    for image, status, reason in (
        (f"oci:{tmp_path}/none", 125, "no such directory"),
        (images.make_image(tmp_path / "bare", []), 125, "layer"),
        (images.make_image(tmp_path / "arm", [images.tar({"x": ""})], arch="arm64"), 125, "arm64"),
        (images.make_image(tmp_path / "empty", [images.tar({})]), 125, "its layers have no files"),
    ):
        done = hako.run("run", *NONE, image, "true", HAKO_CACHE_DIR=cache)
        assert (done.returncode, reason in done.stderr) == (status, True), done.stderr


def test_a_program_for_another_processor(hako: Secluded, tmp_path: Path) -> None:
    """126 and the kernel's word for it."""
    (tmp_path / "program").write_bytes(guestboot.elf(machine=183).ljust(64, b"\0"))
    (tmp_path / "program").chmod(0o755)
    done = hako.run("run", "--rm", *NONE, "-v", f"{tmp_path}:/x", hako.image, "/x/program")
    assert done.returncode == 126 and "exec format error" in done.stderr, done.stderr


# --- a full disk --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 12, 20, 28, 36])
def test_a_full_state_directory(hako: Secluded, size: int) -> None:
    """Whatever file cannot be written any more is named, and all that was written goes."""
    hako.room.run("mount", "-t", "tmpfs", "-o", f"size={size}k,mode=711", "none", str(hako.state))
    try:
        done = hako.run("run", "--rm", *NONE, hako.image, "true")
        left = hako.room.run("find", str(hako.state), "-type", "f", "-o", "-type", "l", "-o", "-type", "s")
    finally:
        hako.room.run("umount", str(hako.state))
    if done.returncode:
        _refused(done, "No space left on device")
        assert str(hako.state) in done.stderr
    assert size > 30 or done.returncode == 125
    assert left == ""


def test_a_full_cache(hako: Secluded) -> None:
    """An image that does not fit is refused, the step and the place named."""
    cache = f"{hako.directory}/cache/oci"
    hako.room.run("mount", "-t", "tmpfs", "-o", "size=500k", "none", cache)
    try:
        done = hako.run("run", "--rm", *NONE, hako.image, "true")
        left = hako.room.run("find", f"{cache}/tmp", f"{cache}/locks", "-name", "*.json", "-o", "-type", "d").split()
    finally:
        hako.room.run("umount", cache)
    _refused(done, "no space left on device")
    assert left == [f"{cache}/tmp", f"{cache}/locks"]


# --- parts that die, at any moment --------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("moment", [0.0, 0.5, 0.9])
def test_a_part_that_dies_during_the_boot(hako: Secluded, usual: Usual, tmp_path: Path, part: str, moment: float) -> None:
    """Killed as soon as it is there, or after this part of the usual time: a message that names it, at once."""
    environment = hako.environment | {"HAKO_CONFIG": _configured(hako, tmp_path, factory__template=False)}
    status, out, err = _killed_in(hako, part, usual.boot * moment, environment)
    assert status or moment > 0.5, "it was killed, and nobody noticed"
    _told(part, status, out, err)


@pytest.mark.clones
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("moment", [0.0, 0.6])
def test_a_part_that_dies_during_a_start_from_a_template(hako: Secluded, usual: Usual, part: str, moment: float) -> None:
    """The same; or the pod boots, and the template is none the worse for it; or it came too late."""
    _told(part, *_killed_in(hako, part, usual.template * moment, hako.environment))


def _told(part: str, status: int, out: str, err: str) -> None:
    """One line that names the part; or the container had done its work already."""
    if status:
        assert status in (125, 137) and any(name in err for name in NAMES[part]) and err.count("\n") == 1, (status, out, err)
    else:
        assert (out, err) == ("done\n", "")


def _killed_in(hako: Secluded, part: str, seconds: float, environment: dict[str, str]) -> tuple[int, str, str]:
    """How a run ends, one part of which is killed so long after its begin; with --rm, nothing is left by itself."""
    begin = time.monotonic()
    client = hako.popen("run", "--rm", *NONE, hako.image, "sh", "-c", "sleep 1; echo done", env=environment)
    hako.wait_for_process(part)
    time.sleep(max(0.0, begin + seconds - time.monotonic()))
    while not _kill(hako, part) and client.poll() is None:  # in the moment of an execve it has no name
        pass
    time.sleep(0.1)
    _kill(hako, part)  # the first may have been about to end, like the `start` that makes the pod's process
    killed = time.monotonic()
    out, err = client.communicate(timeout=60)
    assert time.monotonic() - killed < 20, "it was told only at a deadline"
    hako.assert_nothing_left()
    return client.returncode, out, err


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_dies_while_the_container_runs(hako: Secluded, part: str) -> None:
    """The command was killed (137), and why is told; execs end with it. A pod's process takes its status along."""
    client = hako.popen("run", "--name", "victim", *NONE, hako.image, "sh", "-c", "echo ready; sleep 600")
    _ready(client)
    second = hako.popen("exec", "victim", "sh", "-c", "echo ready; sleep 600")
    _ready(second)
    _kill(hako, part)
    _, err = client.communicate(timeout=60)
    second.communicate(timeout=60)
    found = hako.state_of("victim")
    if part == POD:
        assert (client.returncode, second.returncode, found["status"]) == (125, 125, "dead")
        assert NAMES[POD][0] in err
    else:
        assert (client.returncode, second.returncode, found["exit_status"]) == (137, 137, 137)
        assert any(name in err for name in NAMES[part]), err
    again = hako.run("exec", "victim", "true")
    _refused(again, "victim is not running")
    hako.run("rm", "victim", check=True)
    hako.assert_nothing_left()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_dies_while_the_container_goes(hako: Secluded, part: str) -> None:
    """Killed during `rm -f`: the container goes all the same, and everything of its pod."""
    hako.detached("--name", "victim", hako.image, "sleep", "600")
    client = hako.popen("rm", "-f", "victim")
    while client.poll() is None:
        _kill(hako, part)
    assert client.returncode == 0, client.communicate()
    hako.assert_nothing_left()


def test_a_pod_that_dies_with_its_network(hako: Secluded) -> None:
    """With --rm, the client of a killed pod takes the network away too, when its last user has gone."""
    client = hako.popen("run", "--rm", hako.image, "sh", "-c", "echo ready; sleep 600")
    _ready(client)
    assert "link hako0" in hako.room.inventory()
    _kill(hako, POD)
    client.communicate(timeout=60)
    assert client.returncode == 125
    hako.assert_nothing_left()


def test_a_guest_that_hangs(hako: Secluded) -> None:
    """exec is an error within its deadline, and `rm -f` takes the container away all the same, both at once here."""
    hako.detached("--name", "hung", hako.image, "sleep", "600")
    _kill(hako, QEMU, signal.SIGSTOP)
    hopeless = hako.popen("exec", "hung", "true")
    hako.run("rm", "-f", "hung", check=True)
    _, err = hopeless.communicate(timeout=60)
    assert hopeless.returncode == 125 and "hako: " in err, err
    hako.assert_nothing_left()


def test_a_panic_while_the_container_runs(hako: Secluded, tmp_path: Path) -> None:
    """The console's last lines are told."""
    config = _configured(hako, tmp_path, guest__kernel_params="sysctl.vm.panic_on_oom=2", factory__template=False)
    eat = "a=x; while :; do a=$a$a; done"
    done = hako.run("run", "--rm", *NONE, "-m", "32m", hako.image, "sh", "-c", eat, HAKO_CONFIG=config)
    assert done.returncode == 137 and "guest console: " in done.stderr and "Kernel panic" in done.stderr, done.stderr
    hako.assert_nothing_left()


def test_an_agent_that_ends(hako: Secluded) -> None:
    """Its guest switches off; the container was killed, and goes."""
    client = hako.popen("run", "--rm", *NONE, hako.image, "sh", "-c", "echo ready; sleep 600")
    _ready(client)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(next(hako.state.glob("s/*.d/vsock.sock"))))
    sock.sendall(b"CONNECT 1024\n")
    assert sock.recv(16).startswith(b"OK ")
    agent = Client(sock)
    agent.call("grpc.AgentService", "DestroySandbox", agent_pb2.DestroySandboxRequest(), empty_pb2.Empty, 20)
    agent.close()
    client.communicate(timeout=60)
    assert client.returncode == 137
    hako.assert_nothing_left()


# --- users and clients --------------------------------------------------------------------------------------


def test_one_of_several_gets_a_name(hako: Secluded) -> None:
    """The others are told who has it, and leave nothing."""
    clients = [hako.popen("run", "--rm", "--name", "twin", *NONE, hako.image, "true") for _ in range(4)]
    ends = sorted((client.communicate(timeout=90)[1], client.returncode) for client in clients)
    assert [status for _, status in ends] == [0, 125, 125, 125]
    assert all("the name twin is in use by container" in err for err, status in ends if status)
    hako.assert_nothing_left()


@pytest.mark.parametrize("moment", [0.05, 0.15, 0.5, 0.8])
def test_a_client_that_is_killed_during_the_start(hako: Secluded, usual: Usual, tmp_path: Path, moment: float) -> None:
    """What it has begun can be listed by its name and removed, whatever it was."""
    environment = hako.environment | {"HAKO_CONFIG": _configured(hako, tmp_path, factory__template=False)}
    client = hako.popen("run", "--name", "orphan", *NONE, hako.image, "sleep", "600", env=environment)
    time.sleep(usual.boot * moment)
    _kill_client(hako, signal.SIGKILL)
    client.communicate(timeout=30)
    names = hako.run("list", "-a", "--json", check=True).stdout
    assert hako.run("rm", "-f", "orphan").returncode == (0 if "orphan" in names else 1)
    hako.assert_nothing_left()


@pytest.mark.parametrize("moment", [0.1, 0.3, 0.6])
def test_a_client_that_is_interrupted_during_the_start(hako: Secluded, usual: Usual, tmp_path: Path, moment: float) -> None:
    """Ctrl-C takes away at once what was begun."""
    environment = hako.environment | {"HAKO_CONFIG": _configured(hako, tmp_path, factory__template=False)}
    script = "trap 'exit 130' INT; while :; do sleep 0.1; done"
    client = hako.popen("run", *NONE, hako.image, "sh", "-c", script, env=environment)
    time.sleep(usual.boot * moment)
    _kill_client(hako, signal.SIGINT)
    begin = time.monotonic()
    client.communicate(timeout=60)
    assert client.returncode == 130 and time.monotonic() - begin < 10
    hako.remove_everything()  # it may have run already
    hako.assert_nothing_left()


def _kill_client(hako: Secluded, number: int) -> None:
    for pid, command in hako.processes():
        if f"{hako.bin}/hako run" in command:
            hako.room.kill(pid, number)
