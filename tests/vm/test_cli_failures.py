"""What a user of `hako run` sees when something is wrong: a message that names it, 125, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.hako import Hako, installation

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test"),
]
NONE = ("--network", "none")


@pytest.fixture(scope="module")
def hako() -> Iterator[Hako]:
    """One user of hako for all tests here."""
    with installation() as hako:
        yield hako


@pytest.fixture(autouse=True)
def tidy(hako: Hako) -> Iterator[None]:
    """What a failed test leaves must not fail the next one."""
    yield
    hako.remove_everything()


def _configured(hako: Hako, **changes: str) -> str:
    """The path of a configuration like the usual one, with `section__key="value"` changed or added."""
    import tomllib

    path = hako.directory / f"{'-'.join(changes)}.toml"
    tables = tomllib.loads(Path(hako.environment["HAKO_CONFIG"]).read_text())
    for name, value in changes.items():
        section, _, key = name.partition("__")
        tables.setdefault(section, {})[key] = value
    lines = []
    for section, table in tables.items():
        lines += [f"[{section}]", *(f"{key} = {value if value.isdigit() else repr(value)}" for key, value in table.items())]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def _process(hako: Hako, program: str) -> int:
    """The pid of one of the pod's programs, once it runs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid, command in hako.processes():
            if os.path.basename(command.split(" ")[0]) == program:
                return pid
        time.sleep(0.02)
    raise AssertionError(f"{program} does not run: {hako.processes()}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guest__kernel": "/none/vmlinux"}, "/none/vmlinux: there is no such file"),
        ({"guest__kernel": "/etc/passwd"}, "kernel"),
        ({"guest__image": "/none/image.erofs"}, "/none/image.erofs: there is no such file"),
        ({"guest__kernel_params": "init=/none"}, "guest console"),
        ({"hypervisor__default_memory": "9999999"}, "memory"),
        ({"hypervisor__path": "/none/qemu"}, "/none/qemu"),
        ({"hypervisor__nmae": "qemu"}, "nmae: there is no such key"),
        ({"vsock__daemon": "/none/vsock"}, "/none/vsock"),
        ({"share__daemon": "/none/virtiofsd"}, "/none/virtiofsd"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_start_that_fails(hako: Hako, changes: dict[str, str], words: str) -> None:
    """Kernel, image, memory, programs, configuration: the message names what is wrong."""
    done = hako.run("run", *NONE, hako.image, "true", HAKO_CONFIG=_configured(hako, **changes))
    assert done.returncode == 125 and words in done.stderr, done.stderr
    assert done.stderr.startswith("hako: ") and "Traceback" not in done.stderr
    hako.assert_nothing_left()


def test_no_tun(hako: Hako) -> None:
    """Without /dev/net/tun a container with a network is refused, naming it."""
    words = hako.argv("run", hako.image, "true")
    script = 'mount -t tmpfs none /dev/net && exec "$@"'
    inside = ["unshare", "--net", "--mount", "sh", "-c", script, "sh", *words]
    done = subprocess.run(inside, env=hako.environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 125 and "tun" in done.stderr, done.stderr
    hako.assert_nothing_left()


@pytest.mark.parametrize("program", ["qemu-system-x86_64", "virtiofsd", "vhost-device-vsock"])
def test_a_part_that_dies_during_the_start(hako: Hako, program: str) -> None:
    """A killed VMM or daemon ends the start at once, and the message says which it was."""
    if program == "vhost-device-vsock" and os.path.exists("/dev/vhost-vsock"):
        pytest.skip("this host has /dev/vhost-vsock, so no daemon is used")
    client = hako.popen("run", *NONE, hako.image, "true")
    os.kill(_process(hako, program), signal.SIGKILL)
    _, err = client.communicate(timeout=90)
    assert client.returncode == 125, err
    assert program.partition("-")[0] in err.lower() or "killed" in err, err
    hako.assert_nothing_left()


@pytest.mark.parametrize("program", ["qemu-system-x86_64", "virtiofsd"])
def test_a_part_that_dies_while_the_container_runs(hako: Hako, program: str) -> None:
    """The container has ended with 137, as one that was killed, and can be removed."""
    client = hako.popen("run", "--name", "victim", *NONE, hako.image, "sh", "-c", "echo ready; sleep 600")
    assert client.stdout is not None and client.stdout.readline() == "ready\n"
    os.kill(_process(hako, program), signal.SIGKILL)
    client.communicate(timeout=60)
    assert client.returncode == 137
    assert hako.state_of("victim")["exit_status"] == 137
    hako.run("rm", "victim", check=True)
    hako.assert_nothing_left()


def test_a_vm_that_dies_during_an_exec(hako: Hako) -> None:
    """`hako exec` ends too, and is not mistaken for a success."""
    hako.detached("--name", "victim", hako.image, "sleep", "600")
    client = hako.popen("exec", "victim", "sh", "-c", "echo ready; sleep 600")
    assert client.stdout is not None and client.stdout.readline() == "ready\n"
    os.kill(_process(hako, "qemu-system-x86_64"), signal.SIGKILL)
    client.communicate(timeout=60)
    assert client.returncode in (125, 137)
    hako.run("rm", "-f", "victim", check=True)
    hako.assert_nothing_left()


def test_a_guest_that_hangs(hako: Hako) -> None:
    """`rm -f` of a container whose VM does not answer any more takes it away all the same."""
    hako.detached("--name", "hung", hako.image, "sleep", "600")
    os.kill(_process(hako, "qemu-system-x86_64"), signal.SIGSTOP)
    hako.run("rm", "-f", "hung", check=True)
    hako.assert_nothing_left()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["run"], "name an image"),
        (["run", "--nmae", "x", "image"], "unknown option --nmae"),
        (["exec", "nosuch", "true"], "no such container: nosuch"),
        (["logs", "nosuch"], "no such container: nosuch"),
        (["frobnicate"], "no such command: frobnicate"),
    ],
)
def test_wrong_words(hako: Hako, words: list[str], reason: str) -> None:
    """A wrong command line is told in one line on stderr."""
    done = hako.run(*words)
    assert done.returncode == 125 and reason in done.stderr and done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_options_that_the_image_or_host_cannot_give(hako: Hako, tmp_path: Path) -> None:
    """A user that the image has not, a capability or profile that does not exist: refused by name."""
    (tmp_path / "profile.json").write_text("not JSON")
    for option, reason in (
        (("-u", "nosuch"), "no user 'nosuch'"),
        (("--cap-add", "NOSUCH"), "NOSUCH"),
        (("--security-opt", f"seccomp={tmp_path}/profile.json"), "profile.json"),
        (("--security-opt", "seccomp=/none.json"), "/none.json"),
        (("-v", f"{tmp_path}:/"), "root"),
    ):
        done = hako.run("run", *NONE, *option, hako.image, "true")
        assert done.returncode == 125 and reason in done.stderr, done.stderr
    hako.assert_nothing_left()
