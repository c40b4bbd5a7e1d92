"""What is loaded on the paths that must be short, seen in a real interpreter."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import paths
from tests.framework.importtime import loaded_by

# 30 ms and more each, in a process that containerd starts for every container.
HEAVY = {"asyncio", "grpc", "pyroute2", "msgspec", "logging", "subprocess", "typing", "dataclasses"}
# A start of Python costs 12 times as much in an emulated guest: nothing there that can be done without.
NOT_IN_THE_GUEST = {
    "typing", "dataclasses", "enum", "re", "json", "logging", "subprocess", "asyncio", "threading", "pathlib",
    "contextlib", "datetime", "tempfile", "shutil", "argparse", "collections", "functools", "inspect",
}  # fmt: skip
SHIM_MAIN = "from shim.__main__ import containerd_shim; sys.exit(containerd_shim())"
HAKO_MAIN = "from shim.__main__ import hako; sys.exit(hako())"


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A state directory of the test's own, as environment. Short: a socket's path is limited."""
    directory = tempfile.mkdtemp(prefix="hako-")
    monkeypatch.setenv("HAKO_STATE_DIR", directory)
    yield {"HAKO_STATE_DIR": directory}
    shutil.rmtree(directory)


def test_start_loads_nothing_heavy(state: dict[str, str], tmp_path: Path) -> None:
    """`start`, run for real for a pod whose process answers, loads no heavy module."""
    path = paths.task_socket("box", "test")
    Path(path).parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        (tmp_path / "config.json").write_text('{"annotations": {}}')
        argv = ["-namespace", "test", "-id", "box", "-address", "/none", "start"]
        loaded = loaded_by(SHIM_MAIN, argv, state, cwd=str(tmp_path))
    assert "shim.task.bootstrap" in loaded
    assert loaded & (HEAVY | {"json", "re", "enum", "hashlib", "socket"}) == set()


def test_a_machine_is_begun_before_the_protocols_are_loaded() -> None:
    """What starts QEMU before the first Create knows neither protobuf nor ttrpc, which take as long to load as QEMU to start."""
    loaded = loaded_by("import shim.sandbox.ahead")
    assert "shim.hypervisor.qemu.driver" in loaded
    assert not [name for name in loaded if name.startswith(("google", "agent.api.", "agent.ttrpc", "shim.task"))]


def test_delete_loads_nothing_heavy(state: dict[str, str], tmp_path: Path) -> None:
    """`delete`, which containerd runs for every container that ends, loads no heavy module."""
    argv = ["-namespace", "test", "-id", "box", "-bundle", str(tmp_path), "delete"]
    loaded = loaded_by(SHIM_MAIN, argv, state, cwd=str(tmp_path))
    assert "shim.task.delete" in loaded
    assert loaded & HEAVY == set()


def test_hako_loads_only_the_verb(state: dict[str, str]) -> None:
    """`hako list` loads its own module and nothing of the others, nor anything heavy."""
    loaded = loaded_by(HAKO_MAIN, ["list"], state)
    verbs = {name for name in loaded if name.startswith("shim.cli.")}
    assert "shim.cli.list" in verbs
    assert not verbs & {"shim.cli.run", "shim.cli.exec", "shim.cli.check", "shim.cli.session"}
    assert loaded & HEAVY == set()


def test_exec_loads_nothing_heavy() -> None:
    """The modules of `hako exec`, the client of the task API included, pull in nothing heavy."""
    loaded = loaded_by("import shim.cli.exec, shim.cli.session, shim.cli.task, shim.cli.status")
    assert loaded & HEAVY == set()


def test_the_agent_is_on_a_diet() -> None:
    """The whole agent loads without the modules that make Python slow to start."""
    loaded = loaded_by("import agent.start")
    assert "agent.service" in loaded
    assert loaded & NOT_IN_THE_GUEST == set()
