"""A containerd with everything that it starts in namespaces of its own (room.py): what is left is found by an inventory.

Owns: what of such a room belongs to containerd and not to its pods. Used by tests of what goes wrong.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.framework.containerd import HAKO, Containerd, guest_config, short_directory
from tests.framework.ociimage import REFERENCE
from tests.framework.room import Room

DAEMON = "/containerd --config "
FIFOS = "/run/containerd/fifo/"


class SecludedContainerd(Containerd):
    """See the module. Pids are those of the room; `before` is the inventory that tests compare with."""

    def __init__(self, directory: Path, programs: str) -> None:
        super().__init__(directory, guest_config(directory), programs)
        self.room = Room(directory.name, (self.state_dir, directory / "state/io.containerd.runtime.v2.task"))
        self.before: set[str] = set()

    def __enter__(self) -> SecludedContainerd:
        super().__enter__()
        self.import_busybox()
        self.ctr("run", "--rm", "--runtime", HAKO, REFERENCE, self.unique("first"), "true")
        self.before = self.room.inventory()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            super().__exit__(*error)
        finally:
            self.room.close()

    def inside(self, argv: list[str]) -> list[str]:
        """See Containerd."""
        return [*self.room.enter, *argv]

    def send(self, process: subprocess.Popen[bytes], number: int) -> None:
        """See Containerd: `process` is nsenter, which waits for containerd."""
        for pid, command in self.room.processes().items():
            if DAEMON in command:
                self.room.kill(pid, number)

    def kill(self, pid: int, number: int = 9) -> None:
        """See Containerd."""
        self.room.kill(pid, number)

    def processes(self) -> list[tuple[int, str]]:
        """See Containerd."""
        return [(pid, command) for pid, command in sorted(self.room.processes().items()) if DAEMON not in command]

    def leftovers(self) -> list[str]:
        """See Containerd. A ctr that is not told of its container's end leaves its fifos."""
        return [item for item in self.room.left(self.before, 0) if DAEMON not in item and FIFOS not in item]


@contextmanager
def containerd(programs: str = "") -> Iterator[SecludedContainerd]:
    """One in a directory of its own; at the end nothing may be left."""
    with short_directory() as directory, SecludedContainerd(directory, programs) as engine:
        yield engine
        engine.remove_everything()
        engine.assert_nothing_left()
