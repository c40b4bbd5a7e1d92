"""The shim's binary as engines call it: start, delete, -info, -v; real processes, no VM."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket
from typing import Any

import pytest

from agent.api import empty_pb2
from agent.ttrpc.client import Client
from shim import paths
from shim.sandbox.store import Store
from shim.task import deleted, forkclient
from shim.task.api import task_pb2
from tests.framework.containerd import short_directory, write_launcher
from tests.framework.taskpod import write_bundle

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the state directory is root's")

MEMBER = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod1"}
SANDBOX = {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "pod1"}


class Shim:
    """The installed binary with a state directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.binary = write_launcher(directory)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HAKO_STATE_DIR": str(directory / "h"),
            "TTRPC_ADDRESS": "",
            "MAX_SHIM_VERSION": "2",
        }

    def run(
        self, *words: str, bundle: Path | None = None, stdin: bytes | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Call it in a bundle as containerd does: returns when its output pipes have closed."""
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        result = subprocess.run(
            [str(self.binary), *words],
            capture_output=True, timeout=20, cwd=bundle or self.directory, env=self.environment, check=False,
            **given,
        )  # fmt: skip
        assert not check or result.returncode == 0, result.stderr
        return result

    def start(self, container_id: str, bundle: Path, namespace: str = "ns", **options: Any) -> str:
        """The address that `start` prints, which it also wrote into the bundle."""
        words = ("-namespace", namespace, "-address", "/run/x.sock", "-publish-binary", "/bin/true")
        result = self.run(*words, "-id", container_id, "start", bundle=bundle, **options)
        assert result.stderr == b""
        address = result.stdout.decode()
        assert (bundle / "address").read_text() == address
        return address

    def delete(self, container_id: str, bundle: Path) -> task_pb2.DeleteResponse:
        """What `delete` prints."""
        words = ("-namespace", "ns", "-address", "/run/x.sock", "-publish-binary", "/bin/true")
        result = self.run(*words, "-id", container_id, "-bundle", str(bundle), "delete", bundle=bundle)
        return task_pb2.DeleteResponse.FromString(result.stdout)


@pytest.fixture
def shim() -> Iterator[Shim]:
    """A shim binary; pod processes that it started are ended."""
    with short_directory() as directory:
        yield Shim(directory)
        for path in (directory / "h/s").glob("*"):
            shut_down(f"unix://{path}")


def connect(address: str) -> Client:
    """A connection to a pod process."""
    sock = socket(AF_UNIX, SOCK_STREAM)
    sock.connect(address.removeprefix("unix://"))
    return Client(sock)


def call(client: Client, method: str, request: Any, reply: Any) -> Any:
    """One call of the task API."""
    return client.call("containerd.task.v2.Task", method, request, reply, 10)


def shut_down(address: str) -> None:
    """Ask a pod process to end, if it is there."""
    try:
        call(connect(address), "Shutdown", task_pb2.ShutdownRequest(), empty_pb2.Empty)
    except OSError:
        pass


def wait_until_gone(path: str, timeout: float = 5) -> bool:
    """Whether the path disappears in time."""
    deadline = time.monotonic() + timeout
    while os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not os.path.exists(path)


def test_start_prints_a_plain_address_of_a_process_that_serves(shim: Shim) -> None:
    """unix://SOCKET and nothing else; the process answers, keeps no descriptor of the caller, socket is
    0600.
    """
    bundle = write_bundle(shim.directory / "b", ["true"])
    address = shim.start("c1", bundle)
    path = address.removeprefix("unix://")
    assert address.startswith("unix:///") and len(path) < 107
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    pid = call(connect(address), "Connect", task_pb2.ConnectRequest(id="c1"), task_pb2.ConnectResponse).shim_pid
    targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)]
    assert targets == ["/dev/null"] * 3
    assert os.getsid(pid) == pid and os.readlink(f"/proc/{pid}/cwd") == "/"


def test_both_versions_of_the_task_service_are_there(shim: Shim) -> None:
    """containerd 1.x and CRI-O speak v2, containerd 2.x may speak v3."""
    client = connect(shim.start("c1", write_bundle(shim.directory / "b", ["true"])))
    for version in ("v2", "v3"):
        service = f"containerd.task.{version}.Task"
        request = task_pb2.ConnectRequest(id="c1")
        assert client.call(service, "Connect", request, task_pb2.ConnectResponse, 10).shim_pid


def test_shutdown_ends_the_process_and_its_socket(shim: Shim) -> None:
    """After Shutdown without tasks nothing is left: no process, no socket file."""
    address = shim.start("c1", write_bundle(shim.directory / "b", ["true"]))
    client = connect(address)
    pid = call(client, "Connect", task_pb2.ConnectRequest(id="c1"), task_pb2.ConnectResponse).shim_pid
    call(client, "Shutdown", task_pb2.ShutdownRequest(id="c1"), empty_pb2.Empty)
    assert not os.path.exists(address.removeprefix("unix://")), "whoever comes after the answer begins anew"
    assert wait_until_gone(f"/proc/{pid}")


def test_a_pod_has_one_process(shim: Shim) -> None:
    """Containers of a sandbox get its process's address, each in its own bundle."""
    sandbox = write_bundle(shim.directory / "s", ["true"], annotations=SANDBOX)
    member = write_bundle(shim.directory / "m", ["true"], annotations=MEMBER)
    address = shim.start("pod1", sandbox)
    assert shim.start("c1", member) == address
    assert shim.start("pod1", sandbox) == address


def test_namespaces_and_ids_do_not_meet(shim: Shim) -> None:
    """The same id in two namespaces is two pods; names of 76 characters fit."""
    bundle = write_bundle(shim.directory / "b", ["true"])
    addresses = {
        shim.start("c1", bundle, "a"),
        shim.start("c1", bundle, "b"),
        shim.start("n" * 64, bundle, "x" * 76),
    }
    assert len(addresses) == 3


def test_a_container_of_a_pod_that_is_gone_is_refused(shim: Shim) -> None:
    """No process is started for it; the message names the sandbox."""
    bundle = write_bundle(shim.directory / "m", ["true"], annotations=MEMBER)
    words = ("-namespace", "ns", "-id", "c1", "start")
    result = shim.run(*words, bundle=bundle, check=False)
    assert result.returncode == 1 and b"sandbox pod1" in result.stderr
    assert not list((shim.directory / "h/s").glob("*"))


def test_a_dead_socket_is_replaced(shim: Shim) -> None:
    """A socket file that nobody serves does not keep a pod from starting."""
    bundle = write_bundle(shim.directory / "b", ["true"])
    address = shim.start("c1", bundle)
    path = address.removeprefix("unix://")
    pid = call(connect(address), "Connect", task_pb2.ConnectRequest(id="c1"), task_pb2.ConnectResponse).shim_pid
    os.kill(pid, 9)
    while os.path.exists(f"/proc/{pid}/fd/0") or forkclient.is_served(path):  # one it was just forking has it, too
        time.sleep(0.01)
    assert os.path.exists(path)
    assert shim.start("c1", bundle) == address
    assert call(connect(address), "Connect", task_pb2.ConnectRequest(), task_pb2.ConnectResponse).shim_pid != pid


def test_sigterm_ends_the_process(shim: Shim) -> None:
    """And takes its socket away."""
    address = shim.start("c1", write_bundle(shim.directory / "b", ["true"]))
    pid = call(connect(address), "Connect", task_pb2.ConnectRequest(), task_pb2.ConnectResponse).shim_pid
    os.kill(pid, 15)
    assert wait_until_gone(address.removeprefix("unix://"))


def test_the_engine_is_preferred_by_the_oom_killer(shim: Shim) -> None:
    """oom_score_adj of the pod process is the caller's plus one."""
    address = shim.start("c1", write_bundle(shim.directory / "b", ["true"]))
    pid = call(connect(address), "Connect", task_pb2.ConnectRequest(), task_pb2.ConnectResponse).shim_pid
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == min(ours + 1, 1000)


def test_delete_of_something_unknown_succeeds(shim: Shim) -> None:
    """Status 0, 137 and a time; with and without a bundle's config, twice."""
    bundle = write_bundle(shim.directory / "b", ["true"])
    empty = shim.directory / "e"
    empty.mkdir()
    for directory in (bundle, empty, bundle):
        reply = shim.delete("c1", directory)
        assert (reply.exit_status, reply.pid) == (137, 0)
        assert abs(reply.exited_at.seconds - time.time()) < 20


def test_delete_says_what_the_pods_process_has_left_to_be_said(shim: Shim) -> None:
    """Without Python; a bundle that is used once more is looked at again. Only `delete` asks for it."""
    bundle = write_bundle(shim.directory / "b", ["true"])
    told = task_pb2.DeleteResponse(pid=7, exit_status=3)
    deleted.leave(str(bundle), told.SerializeToString())
    shim.binary.write_text(shim.binary.read_text().replace(sys.executable, "/nonexistent"))
    assert shim.delete("c1", bundle) == told
    assert b"/nonexistent" in shim.run("-namespace", "ns", "-id", "delete", "start", bundle=bundle, check=False).stderr
    shim.binary = write_launcher(shim.directory)
    shim.start("c1", bundle)
    assert shim.delete("c1", bundle).exit_status == 137


def test_delete_unmounts_what_a_dead_shim_left(shim: Shim) -> None:
    """A root filesystem that is still mounted in the bundle is unmounted, what is in it stays."""
    bundle = write_bundle(shim.directory / "b", ["true"])
    source = shim.directory / "data"
    source.mkdir()
    (source / "precious").write_text("x")
    subprocess.run(["mount", "--bind", str(source), str(bundle / "rootfs")], check=True)
    shim.delete("c1", bundle)
    assert not os.path.ismount(bundle / "rootfs")
    assert (source / "precious").exists()


def test_version_and_info(shim: Shim) -> None:
    """-v prints text, -info a message; neither needs a namespace or an id."""
    assert b"Version" in shim.run("-v").stdout
    assert b"io.containerd.hako.v2" in shim.run("-info", stdin=b"").stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-id", "x", "start"], b"namespace cannot be empty"),
        (["-namespace", "n", "start"], b"id cannot be empty"),
        (["-namespace", "n", "-id", "x", "stop"], b"stop"),
        (["-nope"], b"-nope"),
        (["-namespace", "n", "-id", "../x", "delete"], b"../x"),
    ],
)
def test_mistakes_are_one_line_on_stderr(shim: Shim, words: list[str], reason: bytes) -> None:
    """Status 1 and a readable reason, no traceback."""
    result = shim.run(*words, check=False)
    assert result.returncode == 1
    assert reason in result.stderr and result.stderr.count(b"\n") == 1


def test_a_bad_config_json_fails_start_readably(shim: Shim) -> None:
    """The engine shows the message; no process stays."""
    bundle = write_bundle(shim.directory / "b", ["true"])
    (bundle / "config.json").write_text("{")
    result = shim.run("-namespace", "ns", "-id", "c1", "start", bundle=bundle, check=False)
    assert result.returncode == 1 and b"Traceback" not in result.stderr


def test_delete_ends_a_process_without_a_task(shim: Shim) -> None:
    """Its engine was killed between `start` and Create: after `delete` neither process nor socket are there."""
    bundle = write_bundle(shim.directory / "b", ["true"])
    path = Path(shim.start("c1", bundle).removeprefix("unix://"))
    assert path.exists()
    assert shim.delete("c1", bundle).exit_status == 137
    assert not path.exists()
    assert shim.delete("c1", bundle).exit_status == 137


def test_delete_removes_the_socket_of_a_killed_process(shim: Shim) -> None:
    """Nobody listens there any more, and nobody else would remove it."""
    bundle = write_bundle(shim.directory / "b", ["true"])
    address = shim.start("c1", bundle)
    path = Path(address.removeprefix("unix://"))
    pid = call(connect(address), "Connect", task_pb2.ConnectRequest(), task_pb2.ConnectResponse).shim_pid
    os.kill(pid, signal.SIGKILL)
    assert path.exists()
    shim.delete("c1", bundle)
    assert not path.exists()


def test_delete_waits_for_a_process_that_takes_its_pod_down(shim: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delete was answered, the machine still goes: once `delete` has ended it is gone."""
    bundle = write_bundle(shim.directory / "b", ["true"])
    monkeypatch.setenv("HAKO_STATE_DIR", str(shim.directory / "h"))
    store = Store.create(paths.sandbox_dir("c1", "ns"), "c1", "ns")
    going = threading.Timer(1.0, store.remove)
    going.start()
    assert shim.delete("c1", bundle).exit_status == 137
    assert not os.path.exists(store.directory)
    going.join()
