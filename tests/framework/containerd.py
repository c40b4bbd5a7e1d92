"""A private containerd for tests: own root, state, sockets and shim; nothing of the machine's own engine is
touched.

    with Containerd(tmp) as engine:
        engine.import_busybox()
        result = engine.ctr("run", "--rm", "--runtime", HAKO, REFERENCE, "c1", "echo", "hi")

The machine's containerd, or the one whose programs' directory is given. HAKO_TEST_CONTAINERD names another directory
for the former. The directory of a test should be short: sockets live below it (107 bytes).
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shim import paths, tools
from shim.install import launcher
from tests.framework import ociimage, stack

HAKO = "io.containerd.hako.v2"
RUNC = "io.containerd.runc.v2"
ROOT = Path(__file__).resolve().parents[2]
CONFIG = """version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{dir}/c.sock"
[debug]
  level = "debug"
"""
# What a test does not use and what this kind of machine cannot have.
DISABLED = [
    f"io.containerd.{name}.v1.{part}"
    for name, part in (
        ("grpc", "cri"),
        ("internal", "opt"),
        ("snapshotter", "btrfs"),
        ("snapshotter", "zfs"),
        ("nri", "nri"),
    )
]
Result = subprocess.CompletedProcess[bytes]


def binary(name: str, directory: str = "") -> str:
    """Path of containerd, ctr or a shim: from `directory`, HAKO_TEST_CONTAINERD or the machine's packages."""
    directory = directory or os.environ.get("HAKO_TEST_CONTAINERD", "")
    found = shutil.which(name, path=directory) if directory else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name}: apt-get install containerd, or set HAKO_TEST_CONTAINERD")
    return found


def second() -> str | None:
    """Directory of the programs of a containerd 2, if it was fetched: python -m shim.tools --ensure containerd2."""
    program = os.path.join(paths.cache_dir("tools"), "containerd2", tools.TOOLS["containerd2"].program)
    return os.path.dirname(program) if os.access(program, os.X_OK) else None


def write_launcher(directory: Path) -> Path:
    """The shim's binary as an installation would write it, running this checkout."""
    path = directory / "containerd-shim-hako-v2"
    site = next(entry for entry in sys.path if entry.endswith("site-packages"))
    path.write_text(launcher.text(path.name, str(ROOT), site, str(ROOT / ".venv/bin/python")))
    path.chmod(0o755)
    return path


def guest_config(directory: Path) -> dict[str, str]:
    """The environment with a configuration for VM tests: HAKO_TEST_GUEST's kernel and image, or what is
    installed.

    HAKO_TEST_GUEST is a JSON file {"kernel": PATH, "image": PATH or null, "initrd": PATH or null}. With
    HAKO_TEST_COLD=1 every pod boots, as if there were no templates; HAKO_TEST_STACK=new is in stack.py.
    """
    lines = ["[hypervisor]", 'accelerator = "tcg"']
    file = os.environ.get("HAKO_TEST_GUEST")
    if file:
        guest = json.loads(Path(file).read_text())
        keys = [key for key in ("kernel", "image", "initrd") if guest.get(key)]
        lines += ["[guest]", *(f'{key} = "{guest[key]}"' for key in keys)]
    if os.environ.get("HAKO_TEST_COLD"):
        lines += ["[factory]", "template = false"]
    path = directory / "hako.toml"
    path.write_text("\n".join(lines) + "\n")
    if os.environ.get("HAKO_TEST_STACK") == "new":
        stack.use(directory)
    return {"HAKO_CONFIG": str(path)}


class Containerd:
    """One containerd process in its own directory; `state_dir` is what hako keeps of its pods
    (HAKO_STATE_DIR); `programs` the directory of its programs, if not the machine's; `shim` hako's, if not this checkout's.
    """

    def __init__(
        self, directory: Path, environment: dict[str, str] | None = None, programs: str = "", shim: Path | None = None
    ) -> None:
        self.directory = directory
        self._shim = shim
        self._programs = programs
        self.address = str(directory / "c.sock")
        self.state_dir = directory / "h"
        self.bin_dir = directory / "bin"
        self.log_file = directory / "containerd.log"
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Containerd:
        self.bin_dir.mkdir(parents=True, exist_ok=True)
        if self._shim is None:
            write_launcher(self.bin_dir)
        else:
            (self.bin_dir / self._shim.name).symlink_to(self._shim)
        disabled = ", ".join(f'"{name}"' for name in DISABLED)
        text = CONFIG.format(dir=self.directory, disabled=disabled)
        (self.directory / "config.toml").write_text(text)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove_everything()
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """What containerd and its shims run with."""
        path = os.path.dirname(binary("containerd", self._programs))
        return {
            **os.environ,
            "PATH": f"{self.bin_dir}:{path}:{os.environ['PATH']}",
            "HAKO_STATE_DIR": str(self.state_dir),
            **self._environment,
        }

    @property
    def pid(self) -> int:
        """containerd's process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start containerd and wait until it answers."""
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self.inside([binary("containerd", self._programs), "--config", str(self.directory / "config.toml")]),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment,
            )  # fmt: skip
        try:
            self._await_answer(time.monotonic() + 60)
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def _await_answer(self, deadline: float) -> None:
        assert self._process is not None
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"containerd does not answer:\n{self.log_tail()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        if not os.path.exists(self.address):
            return False
        try:
            return self.ctr("version", timeout=20, check=False).returncode == 0
        except subprocess.TimeoutExpired:  # it was asked before it served: ctr then waits in vain
            return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End containerd (not its shims)."""
        process, self._process = self._process, None
        if process is not None:
            self.send(process, number)
            process.wait(20)

    def inside(self, argv: list[str]) -> list[str]:
        """The command line that runs `argv` where containerd is."""
        return argv

    def send(self, process: subprocess.Popen[bytes], number: int) -> None:
        """Send a signal to containerd, which is `process`."""
        process.send_signal(number)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process of a pod, by the pid that its state file has."""
        os.kill(pid, number)

    def restart(self, number: int = signal.SIGKILL) -> None:
        """End containerd hard and start it again."""
        self.stop(number)
        self.start()

    def argv(self, *arguments: str) -> list[str]:
        """ctr's command line."""
        return self.inside([binary("ctr", self._programs), "--address", self.address, *arguments])

    def ctr(self, *arguments: str, timeout: float = 60, check: bool = True, input: bytes | None = None) -> Result:
        """Run ctr; with `check`, a failure raises with its stderr and containerd's log."""
        argv = self.argv(*arguments)
        result = subprocess.run(
            argv, input=input, stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True, timeout=timeout, env=self.environment, check=False,
        )  # fmt: skip
        if check and result.returncode:
            raise AssertionError(
                f"{' '.join(argv)} -> {result.returncode}\n{result.stdout.decode(errors='replace')}"
                f"{result.stderr.decode(errors='replace')}\n{self.log_tail()}"
            )
        return result

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """ctr in the background, with pipes."""
        argv = self.argv(*arguments)
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(argv, env=self.environment, **(pipes | options))

    def import_busybox(self) -> str:
        """Import the test image; its reference."""
        archive = ociimage.archive(self.directory / "busybox.tar")
        self.ctr("image", "import", str(archive))
        return ociimage.REFERENCE

    def unique(self, name: str) -> str:
        """An id that no other engine of this machine uses: cgroups are called after it.

        mkdtemp's names may have a "_" where containerd allows none: at the end, or beside another separator.
        """
        return f"{name}-{self.directory.name.replace('_', 'x')}"

    def tasks(self) -> dict[str, str]:
        """Id -> status of every task."""
        lines = self.ctr("task", "ls").stdout.decode().splitlines()[1:]
        return {line.split()[0]: line.split()[2] for line in lines}

    def containers(self) -> list[str]:
        """Ids of all containers."""
        return self.ctr("container", "ls", "-q").stdout.decode().split()

    def remove_everything(self) -> None:
        """Kill and delete all tasks and containers, whatever state they are in."""
        for task in self.tasks():
            self.ctr("task", "kill", "-s", "SIGKILL", "-a", task, check=False)
            self.ctr("task", "delete", "-f", task, check=False)
        for container in self.containers():
            self.ctr("container", "delete", container, check=False)

    def log_tail(self, lines: int = 40) -> str:
        """The end of containerd's log (shims' logs are in it)."""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def leftovers(self) -> list[str]:
        """What the deleted pods left: processes, mounts, files, cgroups; empty if all is well."""
        found = [f"directory {path}" for path in glob.glob(f"{self.state_dir}/pods/*/*")]
        found += [f"socket {path}" for path in (self.state_dir / "s").glob("*")]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        ours = (f" {self.directory}/state/io.containerd.run", f" {self.state_dir}/")
        found += [f"mount {line.split()[4]}" for line in mounts if any(mark in line for mark in ours)]
        found += [f"process {pid}: {command}" for pid, command in self.processes()]
        return found

    def processes(self) -> list[tuple[int, str]]:
        """Our processes but containerd itself: those whose environment or arguments name this directory."""
        mark = str(self.directory).encode()
        known = {os.getpid(), self._process.pid if self._process is not None else 0}
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in known:
                continue
            try:
                command = (entry / "cmdline").read_bytes()
                named = mark in command or mark in (entry / "environ").read_bytes()
            except OSError:
                continue
            if named:
                found.append((int(entry.name), command.replace(b"\0", b" ").decode(errors="replace")))
        return found

    def assert_nothing_left(self, timeout: float = 30) -> None:
        """Fail with a list of what is left after `timeout` seconds: longer than daemon.IDLE, after which a pod process ends."""
        deadline = time.monotonic() + timeout
        while (found := self.leftovers()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not found, "\n".join(found)


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory with a short name for sockets, removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="hk", dir="/tmp"))
    directory.chmod(0o711)  # the unprivileged daemons pass through it
    try:
        yield directory
    finally:
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(f"{directory}/"):
                subprocess.run(["umount", "-l", line.split()[4]], check=False)
        shutil.rmtree(directory, ignore_errors=True)
