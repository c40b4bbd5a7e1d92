"""Group `exec`, and `ctr run`: what an engine's user waits for, by one containerd.

Owns: ctr's command lines. Knows no stacks. Used by `starts`, `pool` and `peers`, which say what runs.
"""

from __future__ import annotations

from functools import partial

from tests.bench.lab import Lab
from tests.bench.measure import both, whole
from tests.framework.containerd import Containerd
from tests.framework.ociimage import REFERENCE


class CtrRun:
    """`ctr run --rm` of a container that says a word; called, seconds to its first byte and to ctr's exit."""

    def __init__(self, lab: Lab, engine: Containerd, flags: tuple[str, ...]) -> None:
        self._lab = lab
        self._engine = engine
        self._flags = flags

    def __call__(self) -> tuple[float, float]:
        name = self._lab.unique("r")
        argv = self._engine.argv("run", "--rm", *self._flags, REFERENCE, name, "echo", "x")
        return both(argv, self._engine.environment)


class CtrExec:
    """`ctr task exec ... /bin/true` in a container that idles, which starts now; called, seconds to ctr's exit."""

    def __init__(self, lab: Lab, flags: tuple[str, ...]) -> None:
        self._lab = lab
        self._container = lab.unique("i")
        lab.engine.ctr("run", "-d", *flags, REFERENCE, self._container, "sleep", "1000000")
        self._argv = partial(lab.engine.argv, "task", "exec", "--exec-id")

    def __call__(self) -> float:
        return whole(self._argv(self._lab.unique("e"), self._container, "/bin/true"), self._lab.engine.environment)
