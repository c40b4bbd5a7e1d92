"""The groups of the bench, in the order of a round: what each opens and which rows are made of it.

Owns: that list. Groups that are not interleaved (pool, memory, scale) are in `__main__`, since they have their own order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.bench import boot, disks, engine, files, floors, streams
from tests.bench.lab import Lab
from tests.bench.rows import Row, Subject


class Group(NamedTuple):
    """`open` starts what the subjects need; `with_floor`: its rows refer to F_boot."""

    name: str
    open: Callable[[Lab], list[Subject]]
    rows: list[Row]
    with_floor: bool = False


GROUPS = [
    Group("floor", floors.open_group, floors.ROWS),
    Group("boot", boot.open_group, boot.ROWS, with_floor=True),
    Group("run", engine.open_run, engine.RUN_ROWS, with_floor=True),
    Group("exec", engine.open_exec, engine.EXEC_ROWS),
    Group("start", engine.open_start, engine.START_ROWS),
    Group("vsock", streams.open_vsock, streams.VSOCK_ROWS),
    Group("stdio", streams.open_stdio, streams.STDIO_ROWS),
    Group("files", files.open_group, files.ROWS),
    Group("disks", disks.open_group, disks.ROWS),
]
POOL, MEMORY, SCALE = "pool", "memory", "scale"
ALL = [*(group.name for group in GROUPS), POOL, MEMORY, SCALE]


def chosen(names: list[str]) -> list[Group]:
    """The groups of these names, and the floor where one of them needs it."""
    floor = any(group.with_floor for group in GROUPS if group.name in names)
    return [group for group in GROUPS if group.name in names or (floor and group.name == "floor")]
