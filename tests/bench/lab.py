"""What groups measure on: a directory of the run's own, configurations, the guest's files, a private containerd.

Owns: starting these when they are first asked for and taking all away at the end. Knows nothing of what is measured.
Made by `__main__`, used by every group.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from shim.config import GuestConfig
from shim.sandbox import guestfiles
from tests.bench.bare import BareGuest
from tests.framework import ociimage
from tests.framework.containerd import ROOT, Containerd, binary, write_launcher
from tests.framework.hako import Hako

if TYPE_CHECKING:
    from tests.bench.pod import Pod

COLD, TEMPLATE, MANY, DISKS = "cold", "template", "many", "disks"
BUILD = 600.0  # seconds for the floor's image, for a template


class Lab:
    """`modes` are the ways in which a pod can start: cold, and from a template. Both as the first pod of a machine.

    `many` is the configuration of a machine with many pods: all defaults, the forkserver of pod processes with them.
    `disks` is `template` without a shared file system.
    """

    def __init__(self, directory: Path, undo: ExitStack) -> None:
        self.directory = directory
        self.undo = undo
        self.missing: dict[str, str] = {}
        """What could not be measured, and how to get it."""
        self.traces: dict[str, list[str]] = {}
        """What the shim said of each start's steps, by mode."""
        self.guest = guestfiles.find(GuestConfig())
        self._numbers = itertools.count(1)
        self._pods: dict[tuple[str, bool], Pod] = {}
        self.configs = {
            COLD: self._configuration(COLD, template=False, forkserver=False),
            TEMPLATE: self._configuration(TEMPLATE, template=True, forkserver=False),
            MANY: self._configuration(MANY, template=True, forkserver=True),
            DISKS: self._configuration(DISKS, template=True, forkserver=False, shared_fs="none"),
        }

    def _configuration(self, name: str, *, shared_fs: str = "virtio-fs", **switches: bool) -> Path:
        """TCG always: the rows are ratios to an emulated boot, whatever else the host could do."""
        template, forkserver = (str(switches[key]).lower() for key in ("template", "forkserver"))
        lines = [
            '[hypervisor]\naccelerator = "tcg"', f"[factory]\ntemplate = {template}", f"[runtime]\nforkserver = {forkserver}",
            f'[share]\nshared_fs = "{shared_fs}"',
        ]  # fmt: skip
        path = self.directory / f"{name}.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def unique(self, stem: str) -> str:
        """An id that no other engine of this machine uses: cgroups are called after it."""
        return f"{stem}{next(self._numbers)}-{self.directory.name.replace('_', 'x')}"

    def make_templates(self) -> None:
        """Pods of MANY start from the same ones. Without that a first pod boots and makes them beside it."""
        for mode in (TEMPLATE, MANY):
            environment = self.hako.environment | {"HAKO_CONFIG": str(self.configs[mode])}
            argv = self.hako.argv("factory", "init")
            done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=BUILD, check=False)
            if done.returncode:
                self.missing[f"templates ({mode})"] = done.stderr

    @cached_property
    def engine(self) -> Containerd:
        """A containerd with the test image; pods are cold unless a run names another configuration."""
        engine = Containerd(self.directory, {"HAKO_CONFIG": str(self.configs[COLD])})
        self.undo.enter_context(engine)
        engine.import_busybox()
        return engine

    @cached_property
    def hako(self) -> Hako:
        """The `hako` command with an image."""
        (self.directory / "m").mkdir()
        made = Hako(self.directory / "m")
        self.undo.callback(made.remove_everything)
        return made

    @cached_property
    def shim(self) -> Path:
        """containerd-shim-hako-v2 of this checkout."""
        (self.directory / "bin").mkdir(exist_ok=True)
        return write_launcher(self.directory / "bin")

    @cached_property
    def rootfs(self) -> Path:
        """A busybox root file system that pods made without an engine share."""
        return ociimage.unpack(self.directory / "rootfs")

    @cached_property
    def bare_guest(self) -> BareGuest:
        """A VM like a pod's, without the agent."""
        return BareGuest(self.guest.kernel, self.directory, self.undo)

    def idle_pod(self, mode: str, *, several: bool = False) -> Pod:
        """A running pod that does nothing, one for all groups; `several`: it takes more containers."""
        from tests.bench.pod import Pod

        key = (mode, several)
        if key not in self._pods:
            self._pods[key] = self.undo.enter_context(Pod(self, mode, several=several))
            self._pods[key].run()
        return self._pods[key]

    @cached_property
    def default_spec(self) -> str:
        """The spec that ctr would write, as JSON."""
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
        return {**spec, "root": {"path": str(self.rootfs)}, "annotations": annotations}

    def without(self, what: str, how: str) -> None:
        """Remember a peer that is not here."""
        self.missing[what] = how

