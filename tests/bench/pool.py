"""Group `pool`: a container whose pod gets a VM that was waiting for it, and runc's, in turn.

Owns: the pool's configuration, waiting until it is full before each run, its end. A run begins when the pool has a VM; the
next one is made beside it, so only wall time is told.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from tests.bench.engine import CtrRun
from tests.bench.lab import Lab
from tests.bench.measure import RunFailed, Sample
from tests.bench.rows import Row, Samples
from tests.framework.containerd import HAKO, RUNC

HIT, PEER = "ctr run, hako pool hit", "ctr run, runc beside pool"
FIRST = "ctr run to first byte, hako pool hit"
FULL = 120.0  # seconds for a VM to be restored and exercised
LOOK = 0.2
ROWS = [Row("`ctr run --rm ... echo`, pool hit, over runc", HIT, PEER, must=2, aim=1.2)]


class Pool:
    """A pool of one VM. `with` it: it is being filled."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.config: Path = lab.directory / "pool.toml"
        self.config.write_text('[hypervisor]\naccelerator = "tcg"\n[factory]\npool = 1\n')
        self._environment = lab.engine.environment | {"HAKO_CONFIG": str(self.config)}

    def __enter__(self) -> Pool:
        self._run(*self._lab.hako.argv("factory", "init"))
        return self

    def __exit__(self, *_: object) -> None:
        self._run(str(self._lab.shim), "-id", "end", "pool")

    def await_full(self) -> None:
        """Raises RunFailed."""
        deadline = time.monotonic() + FULL
        while True:
            found = json.loads(self._run(*self._lab.hako.argv("factory", "status", "--json")))
            if any(pool["ready"] for pool in found["pools"]):
                return
            if time.monotonic() > deadline:
                raise RunFailed(f"the pool has no VM after {FULL:g} s: {found['pools']}")
            time.sleep(LOOK)

    def _run(self, *argv: str) -> str:
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, timeout=FULL, check=False)
        if done.returncode:
            raise RunFailed(f"{' '.join(argv)}: {done.stderr}")
        return done.stdout


def measure(lab: Lab, samples: Samples, rounds: int) -> None:
    """The samples go to `samples`; a failure is told there too."""
    try:
        with Pool(lab) as pool:
            hit = CtrRun(lab, ("--runtime", HAKO, "--runtime-config-path", str(pool.config)))
            peer = CtrRun(lab, ("--runtime", RUNC))
            for _ in range(rounds):
                pool.await_full()
                for name, run in ((HIT, hit.whole), (FIRST, hit.first), (PEER, peer.whole)):
                    samples.taken.setdefault(name, []).append(Sample(run(), None))
    except (RunFailed, OSError, ValueError) as exc:
        samples.failed[HIT] = str(exc)
