"""What groups measure on: a directory of the run's own, stacks and configurations, a private containerd, idle pods.

Owns: starting these when they are first asked for and taking all away at the end. Knows nothing of what is measured.
Made by `__main__`, used by every group.
"""

from __future__ import annotations

import errno
import itertools
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from shim import config as configuration
from shim.config import Config, GuestConfig
from shim.errors import HakoError
from shim.install import launcher, prefix
from shim.sandbox import guestfiles
from tests.bench import settings, stacks
from tests.bench.bare import BareGuest
from tests.bench.settings import COLD
from tests.bench.stacks import Stack
from tests.framework import ociimage
from tests.framework.containerd import ROOT, Containerd, binary
from tests.framework.hako import Hako

if TYPE_CHECKING:
    from tests.bench.pod import Pod

CGROUPS, COMMON_CGROUP = Path("/sys/fs/cgroup"), "bench"
ENDED = 5.0  # seconds for the last pods' cgroups to go: delete does not wait for the machine's end
BUILD = 600.0  # seconds for the floor's image, for a template

# What `ctr run` adds to `ctr oci spec` (containerd's WithDefaultUnixDevices): c MAJOR:MINOR, -1 for any.
_ALLOWED = ((1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9), (5, 1), (136, -1), (5, 2))
DEVICES = [
    {"allow": False, "access": "rwm"},
    *({"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"} for major, minor in _ALLOWED),
]


class Lab:
    """See the module. `wanted`: only stacks whose names have this in them."""

    def __init__(self, directory: Path, undo: ExitStack, wanted: str = "") -> None:
        self.directory = directory
        self.undo = undo
        self.missing: dict[str, str] = {}
        """What could not be measured, and how to get it."""
        self.traces: dict[str, list[str]] = {}
        """What the shim said of each start's steps, by mode and stack."""
        self.guest = guestfiles.find(GuestConfig())
        found = stacks.find(wanted)
        self.missing |= found.missing
        self.stacks = found.stacks
        self._numbers = itertools.count(1)
        self._pods: dict[tuple[str, str, bool], Pod] = {}
        self._bare: dict[str, BareGuest] = {}
        undo.callback(forget_cgroups)

    def config(self, mode: str, stack: Stack) -> Path:
        """The configuration file of a way to start, whose template is there. Raises HakoError if that cannot be made."""
        path = self.directory / f"{mode}-{self.stacks.index(stack)}.toml"
        if not path.exists():
            path.write_text(settings.text(mode, stack))
            if mode in settings.RESTORED:
                self._make_template(path)
        return path

    def loaded(self, mode: str, stack: Stack) -> Config:
        """What is in it."""
        return configuration.load(str(self.config(mode, stack)))

    def unique(self, stem: str) -> str:
        """An id that no other engine of this machine uses: cgroups are called after it."""
        return f"{stem}{next(self._numbers)}-{self.directory.name.replace('_', 'x')}"

    def _make_template(self, config: Path) -> None:
        """Without that a first pod boots and makes it beside it."""
        environment = self.hako.environment | {"HAKO_CONFIG": str(config)}
        argv = self.hako.argv("factory", "init")
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=BUILD, check=False)
        if done.returncode:
            config.unlink()
            raise HakoError(done.stderr.strip(), step="make a template")

    @cached_property
    def engine(self) -> Containerd:
        """A containerd with the test image; a run names its configuration."""
        return self.new_engine(self.directory, self.config(COLD, self.stacks[0]))

    def new_engine(self, directory: Path, config: Path) -> Containerd:
        """A containerd in a short `directory` whose pods have that configuration unless a run names another."""
        directory.mkdir(exist_ok=True)
        engine = self.undo.enter_context(Containerd(directory, {"HAKO_CONFIG": str(config)}, shim=self.shim))
        engine.import_busybox()
        return engine

    @cached_property
    def hako(self) -> Hako:
        """The `hako` command with an image."""
        (self.directory / "m").mkdir()
        made = Hako(self.directory / "m")
        launcher.write(str(made.bin), self.installed.home, f"{self.installed.home}/site")
        self.undo.callback(made.remove_everything)
        return made

    @cached_property
    def installed(self) -> prefix.Target:
        """hako as `make install` puts it, but for guest and user: what is measured is what its users start.

        A checkout's environment has more in it, which msgspec looks for: 12 ms of every process.
        """
        place = prefix.Target(str(self.directory / "prefix"), confdir="", user="")
        prefix.install(place, str(ROOT), {})
        return place

    @property
    def shim(self) -> Path:
        """Its containerd-shim-hako-v2."""
        return Path(self.installed.bin) / "containerd-shim-hako-v2"

    @cached_property
    def rootfs(self) -> Path:
        """A busybox root file system that pods made without an engine share."""
        return ociimage.unpack(self.directory / "rootfs")

    def bare_guest(self, stack: Stack) -> BareGuest:
        """A VM like a pod's, without the agent."""
        if stack.name not in self._bare:
            directory = self.directory / f"bare{len(self._bare)}"
            self._bare[stack.name] = BareGuest(self.guest.kernel, directory, self.loaded(COLD, stack), self.undo)
        return self._bare[stack.name]

    def idle_pod(self, mode: str, stack: Stack, *, several: bool = False) -> Pod:
        """A running pod that does nothing, one for all groups; `several`: it takes more containers."""
        from tests.bench.pod import Pod

        key = (mode, stack.name, several)
        if key not in self._pods:
            self._pods[key] = self.undo.enter_context(Pod(self, mode, stack, several=several))
            self._pods[key].run()
        return self._pods[key]

    @cached_property
    def default_spec(self) -> str:
        """The spec that ctr begins with, as JSON."""
        return subprocess.run([binary("ctr"), "oci", "spec"], check=True, capture_output=True, text=True, timeout=20).stdout

    @cached_property
    def floor_image(self) -> str:
        """The image with the trivial init."""
        argv = [sys.executable, str(ROOT / "guest-kernel/image.py"), "--floor"]
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=BUILD)
        return done.stdout.splitlines()[-1]

    def spec(self, args: list[str], annotations: dict[str, str], cgroup: str) -> dict[str, object]:
        """What an engine would write for a container of the shared root file system."""
        spec: dict[str, object] = json.loads(self.default_spec)
        process, linux = spec["process"], spec["linux"]
        assert isinstance(process, dict) and isinstance(linux, dict)
        process |= {"args": args, "env": ["PATH=/bin:/usr/bin"], "terminal": False}
        linux["cgroupsPath"] = cgroup
        linux["resources"] = {"devices": DEVICES}
        return {**spec, "root": {"path": str(self.rootfs)}, "annotations": annotations}

    def without(self, what: str, how: str) -> None:
        """Remember what is not here."""
        self.missing[what] = how


def forget_cgroups() -> None:
    """Pods' cgroups go with them, soon; that in which they are goes with the run, unless another one is using it."""
    deadline = time.monotonic() + ENDED
    for path in (*CGROUPS.glob(COMMON_CGROUP), *CGROUPS.glob(f"*/{COMMON_CGROUP}")):
        while not _removed(path) and time.monotonic() < deadline:
            time.sleep(0.05)


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
        return False
    return True
