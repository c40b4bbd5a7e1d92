"""A forkserver whose pool has no VMs: `python fakepool.py -socket ... forkserver`, as the launcher would start it.

Its state directory steers it: while `refuse` is there, no VM can be made; `slow`: making one takes until it is gone. SIGUSR1
ends a waiting process's VM. A VM that was taken away leaves a file `closed-PID`. Used by tests/component/test_task_pool.py.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shim import paths
from shim.config import Config
from shim.errors import HakoError
from shim.sandbox.fate import Fate
from shim.sandbox.spare import Spare
from shim.task import flags, forkserver


class FakeSpare(Spare):
    """Has only what its process asks of it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.fate = Fate()

    def close(self) -> None:
        """Leave a trace."""
        Path(paths.state_root(), f"closed-{os.getpid()}").touch()


def make(config: Config, _log: Callable[[str, str], None]) -> Spare:
    """As shim.sandbox.spare.make."""
    state = Path(paths.state_root())
    if (state / "refuse").exists():
        raise HakoError("no VM today")
    while (state / "slow").exists():
        time.sleep(0.01)
    spare = FakeSpare(config)
    signal.signal(signal.SIGUSR1, lambda _number, _frame: spare.fate.end("it was shot"))
    return spare


if __name__ == "__main__":
    sys.exit(forkserver.main(flags.parse(sys.argv[1:]), make))
