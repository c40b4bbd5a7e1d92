"""The `hako` command for tests: the real launchers, with state of their own and the guest that tests use.

    with installation() as hako:
        assert hako.run("run", "--rm", IMAGE, "true").returncode == 0
        hako.assert_nothing_left()

`secluded()` is the same in namespaces of its own (room.py): what is left there is found by an inventory, and nothing
can outlive it. Owns: their environment, and what must not be left behind. Used by tests/vm/test_cli_*.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shim import paths
from shim.install import launcher
from tests.framework import images
from tests.framework.containerd import ROOT, guest_config, short_directory
from tests.framework.room import Room

Result = subprocess.CompletedProcess[str]


class Hako:
    """One user of hako, with a state directory of his own below `directory` (short: sockets are in it)."""

    def __init__(self, directory: Path, settings: str = "") -> None:
        self.directory = directory
        self.state = directory / "s"
        self.bin = directory / "bin"
        launcher.write(str(self.bin), str(ROOT), sysconfig.get_path("platlib"))
        self.environment = {**os.environ, **guest_config(directory), "HAKO_STATE_DIR": str(self.state)}
        if settings:
            with (directory / "hako.toml").open("a") as file:
                file.write(settings)
        self.image = images.make_busybox(directory / "image")

    def argv(self, *words: str) -> list[str]:
        """The command line of `hako`."""
        return [str(self.bin / "hako"), *words]

    def run(self, *words: str, input: str | None = None, timeout: float = 90, check: bool = False, **env: str) -> Result:
        """Run it to its end; with `check` a failure raises with what it said."""
        done = subprocess.run(
            self.argv(*words), input=input, stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout, env=self.environment | env, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"hako {words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start it, with pipes."""
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(self.argv(*words), text=True, **({"env": self.environment} | pipes | options))

    def detached(self, *words: str) -> str:
        """`run -d` without a network; the container's id."""
        return self.run("run", "-d", "--network", "none", *words, check=True).stdout.strip()

    def state_of(self, name: str) -> dict[str, Any]:
        """The container as `list --json` has it."""
        found = json.loads(self.run("list", "-a", "--json", check=True).stdout)
        return next(item for item in found if name in (item["name"], item["id"]))

    def leftovers(self) -> list[str]:
        """Files, mounts and processes of containers; empty if all is well."""
        kinds = ("containers", "names", "netns", "pods/*", "pool", "s")
        found = [f"file {path}" for kind in kinds for path in self.state.glob(f"{kind}/*")]
        overlays = paths.cache_dir("oci") + "/containers/"
        ours = {path.name for path in (self.state / "containers").glob("*")}
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        found += [f"mount {point}" for point in mounts if point.startswith(f"{self.directory}/")]
        found += [f"mount {p}" for p in mounts if p.startswith(overlays) and p.split("/")[-2] in ours]
        return found + [f"process {pid}: {command}" for pid, command in self.processes()]

    def processes(self) -> list[tuple[int, str]]:
        """Processes that name our directory in their environment or command line, and their descendants."""
        mark, commands, parents, ours = str(self.directory).encode(), {}, {}, set()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                commands[int(entry.name)] = command = (entry / "cmdline").read_bytes()
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if mark in command or mark in (entry / "environ").read_bytes():
                    ours.add(int(entry.name))
            except OSError:
                continue
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        named = ((pid, commands.get(pid, b"").replace(b"\0", b" ").decode(errors="replace")) for pid in sorted(ours))
        return [*named, *self._orphans(commands, parents)]

    @staticmethod
    def _orphans(commands: dict[int, bytes], parents: dict[int, int]) -> list[tuple[int, str]]:
        """VMMs of containers made by hand whose pod's process is gone: QEMU itself names no directory of ours."""
        vmms = {pid: command for pid, command in commands.items() if b"qemu-system" in command.split(b"\0")[0]}
        found = {pid: command for pid, command in vmms.items() if parents.get(pid, 0) <= 1 and b"\0hako-" in command}
        return [(pid, f"orphan {command[:80].decode(errors='replace')}") for pid, command in found.items()]

    def assert_nothing_left(self, timeout: float = 60) -> None:
        """Fail with a list of what is left after `timeout` seconds: a first run has a template made beside it."""
        deadline = time.monotonic() + timeout
        while (found := self.leftovers()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not found, "\n".join(found)

    def remove_everything(self) -> None:
        """Whatever a failed test has left."""
        names = self.run("list", "-aq").stdout.split()
        if names:
            self.run("rm", "-f", *names)


@contextmanager
def installation(settings: str = "") -> Iterator[Hako]:
    """A Hako in a directory of its own; at the end nothing may be left."""
    with short_directory() as directory:
        hako = Hako(directory, settings)
        try:
            yield hako
        finally:
            hako.remove_everything()
        hako.assert_nothing_left()


def new_cache(directory: Path) -> str:
    """A cache in `directory`, which is made, with everything of the usual one but images of containers."""
    directory.mkdir()
    for entry in Path(paths.cache_root()).iterdir():
        if entry.name != "oci":
            (directory / entry.name).symlink_to(entry)
    return str(directory)


def cache_without_templates(directory: Path) -> str:
    """A cache in `directory`, made if need be, with everybody's kernel, image and tools."""
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    for kind in ("kernel", "image", "tools", "oci", "probe"):
        os.makedirs(paths.cache_dir(kind), exist_ok=True)
        (directory / kind).symlink_to(paths.cache_dir(kind))
    return str(directory)


class Secluded(Hako):
    """A Hako whose every process is in `room`, with a cache of its own but for what boots; pids are the room's."""

    def __init__(self, directory: Path, settings: str = "") -> None:
        super().__init__(directory, settings)
        self.environment["HAKO_CACHE_DIR"] = new_cache(directory / "cache")
        self.room = Room(directory.name, (directory,))
        try:
            self.run("factory", "init", check=not os.environ.get("HAKO_TEST_COLD"))
            self.run("run", "--rm", self.image, "true", check=True)  # caches, locks and empty directories are there now
        except BaseException:
            self.room.close()
            raise
        self.before = self.room.inventory()

    def argv(self, *words: str) -> list[str]:
        """The command line of `hako`, in the room."""
        return [*self.room.enter, *super().argv(*words)]

    def processes(self) -> list[tuple[int, str]]:
        """Everything that runs in the room."""
        return sorted(self.room.processes().items())

    def leftovers(self) -> list[str]:
        """Whatever is in the room and was not when the first container had gone."""
        return self.room.left(self.before, 0)

    def wait_for_process(self, mark: str, timeout: float = 60) -> int:
        """The pid in the room of the first process whose command line contains `mark`, once it is there."""
        deadline = time.monotonic() + timeout
        while True:
            for pid, command in self.processes():
                if mark in command:
                    return pid
            assert time.monotonic() < deadline, f"{mark} does not run: {self.processes()}"
            time.sleep(0.002)

    def kill(self, mark: str, number: int = 9) -> None:
        """Send a signal to the process whose command line contains `mark`, as soon as it is there."""
        self.room.kill(self.wait_for_process(mark), number)


@contextmanager
def secluded(settings: str = "") -> Iterator[Secluded]:
    """A Secluded in a directory of its own; at the end nothing may be left."""
    with short_directory() as directory:
        hako = Secluded(directory, settings)
        try:
            yield hako
            hako.remove_everything()
            hako.assert_nothing_left()
        finally:
            hako.room.close()
