"""Group `pool`: a container whose pod gets a VM that was waiting for it.

Owns: an engine for each stack whose pods have a pool of one VM, waiting until that is full. A run begins when the pool has
a VM, and nothing else is measured before the next one is made; the processor time is of both.
"""

from __future__ import annotations

import subprocess
import time

from shim.task import forkclient
from tests.bench.engine import CtrRun
from tests.bench.lab import Lab
from tests.bench.measure import RunFailed
from tests.bench.peers import FIRST, RUN, RUNC
from tests.bench.rows import Row
from tests.bench.settings import POOL, TEMPLATE
from tests.bench.stacks import Stack, on
from tests.bench.starts import name
from tests.bench.subjects import Subject
from tests.framework.containerd import HAKO

FULL = 120.0  # seconds for a VM to be restored and exercised
LOOK = 0.1


class Pool:
    """A pool of one VM on a stack, in an engine of its own: a forkserver has one pool."""

    def __init__(self, lab: Lab, stack: Stack) -> None:
        self._lab = lab
        self._config = lab.config(POOL, stack)
        self._engine = lab.new_engine(lab.directory / f"pool{lab.stacks.index(stack)}", self._config)
        self._environment = self._engine.environment | {"HAKO_CONFIG": str(self._config)}
        lab.undo.callback(self._command, str(lab.shim), "-id", "end", "pool")
        self._command(*lab.hako.argv("factory", "init"))
        self._run = CtrRun(lab, self._engine, ("--runtime", HAKO, "--runtime-config-path", str(self._config)))

    def _command(self, *argv: str) -> None:
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, timeout=FULL, check=False)
        if done.returncode:
            raise RunFailed(f"{' '.join(argv)}: {done.stderr}")

    def hit(self) -> tuple[float, float]:
        """To the first byte, and to ctr's exit; afterwards the pool is full again."""
        hits = self._state()["hits"]
        times = self._run()
        if self._state()["hits"] == hits:
            raise RunFailed("the pod got no VM of the pool, although one was waiting")
        self.await_full()
        return times

    def await_full(self) -> None:
        """Raises RunFailed."""
        deadline = time.monotonic() + FULL
        while not (state := self._state())["ready"]:
            if time.monotonic() > deadline:
                raise RunFailed(f"the pool has no VM after {FULL:g} s: {state}")
            time.sleep(LOOK)

    def _state(self) -> dict[str, object]:
        """What the pool says; it is asked directly, which costs no process."""
        for path in self._engine.state_dir.glob("forkserver-*"):
            if path.is_socket() and (told := forkclient.order("status", str(path))):
                return told
        return {"ready": [], "hits": 0}


def on_stack(lab: Lab, stack: Stack) -> list[Subject]:
    """A hit."""
    pool = Pool(lab, stack)
    return [Subject(tuple(on(name(stem, POOL), stack) for stem in (FIRST, RUN)), pool.hit, pool.await_full)]


ROWS = [
    Row("`ctr run ... echo`, pool hit, over runc", name(RUN, POOL), RUNC, must=2, aim=1.2),
    Row("`ctr run ... echo`, pool hit over template", name(RUN, POOL), name(RUN, TEMPLATE)),
]
