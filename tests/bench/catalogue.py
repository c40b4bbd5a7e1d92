"""The groups of the bench, in the order of a round: what each opens and which rows are made of it.

Owns: that list. Groups that are not interleaved (memory, scale) are in `__main__`, since they have their own order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from tests.bench import files, floors, inside, peers, pool, startcommand, starts
from tests.bench.lab import Lab
from tests.bench.measure import FAILURES
from tests.bench.rows import Row
from tests.bench.stacks import Stack, on
from tests.bench.subjects import Subject


class Group(NamedTuple):
    """`on_stack` starts what the subjects of a stack need, `alone` what those of none need; `needs`: the groups whose
    subjects its rows refer to.
    """

    name: str
    rows: list[Row]
    on_stack: Callable[[Lab, Stack], list[Subject]] | None = None
    alone: Callable[[Lab], list[Subject]] | None = None
    needs: tuple[str, ...] = ()

    def open(self, lab: Lab, failed: Callable[[str, str], None]) -> list[Subject]:
        """All its subjects. What cannot be set up is told to `failed`, with the reason, and the rest goes on."""
        ways = {on(self.name, stack): partial(self.on_stack, lab, stack) for stack in lab.stacks} if self.on_stack else {}
        found: list[Subject] = []
        for name, way in {**ways, self.name: partial(self.alone, lab) if self.alone else list[Subject]}.items():
            try:
                found += way()
            except FAILURES as exc:
                failed(f"group {name}", str(exc))
        return found


GROUPS = [
    Group("floors", floors.ROWS, floors.on_stack, floors.alone),
    Group("peers", peers.RUN_ROWS, alone=peers.run),
    Group("template", starts.TEMPLATE_ROWS, starts.from_template, needs=("floors", "peers")),
    Group("pool", pool.ROWS, pool.on_stack, needs=("peers",)),
    Group("cold", starts.COLD_ROWS, starts.cold, needs=("floors", "peers")),
    Group("start", startcommand.ROWS, alone=startcommand.alone),
    Group("disks", starts.DISKS_ROWS, starts.from_disks, needs=("template",)),
    Group("exec", peers.EXEC_ROWS, peers.execs_on_stack, peers.execs),
    Group("inside", inside.ROWS, inside.on_stack, needs=("floors",)),
    Group("stdio", inside.STDIO_ROWS, inside.stdio),
    Group("files", [*files.ROWS, *files.DISK_ROWS], files.on_stack, files.alone),
]
MEMORY, SCALE = "memory", "scale"
ALL = [*(group.name for group in GROUPS), MEMORY, SCALE]
SECTIONS = {
    "Starts": ("template", "pool", "cold", "start", "disks"),
    "In a pod that is there": ("exec", "inside", "stdio", "files"),
    "Size": (MEMORY,),
    "Many": (SCALE,),
    "Floors and peers": ("floors", "peers"),
}
"""The parts of the report, and whose rows are in them."""


def chosen(names: Sequence[str]) -> list[Group]:
    """The groups of these names, and those that they refer to."""
    wanted = set(names)
    for group in reversed(GROUPS):
        if group.name in wanted:
            wanted |= set(group.needs)
    return [group for group in GROUPS if group.name in wanted]
