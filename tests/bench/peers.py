"""Groups `peers` and `exec`: runtimes without a VM of ours, under the same containerd, and `ctr task exec` on all.

Owns: which peers there are, how they are made to run here, how to get those that are not. A peer that is installed and does
not run here is missing, with its words.

crun refuses machines whose cgroups are of both versions, which this one's are, although only version 1 is used: it runs in
a mount namespace of its own from which the other is taken away. runsc runs under runc's shim, as Docker runs it: its
own shim wants a capability that a container has not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.bench import gvisor
from tests.bench.engine import CtrExec, CtrRun
from tests.bench.floors import F_FORK_HOST
from tests.bench.lab import Lab
from tests.bench.measure import RunFailed
from tests.bench.rows import Row
from tests.bench.settings import TEMPLATE
from tests.bench.stacks import Stack, on
from tests.bench.subjects import Subject, single
from tests.framework.containerd import HAKO
from tests.framework.containerd import RUNC as RUNC_SHIM

RUN, FIRST, EXEC = "ctr run, {}", "ctr run to first byte, {}", "ctr task exec, {}"
RUNC = RUN.format("runc")
UNIFIED = Path("/sys/fs/cgroup/unified")
WITHOUT_UNIFIED = """#!/bin/sh
exec unshare --mount --propagation slave sh -c 'umount {unified}; exec {program} "$@"' crun "$@"
"""


class Peer(NamedTuple):
    """`program` finds it, None if it is not here; `how` to get it."""

    name: str
    program: Callable[[Lab], str | None]
    how: str


def crun(lab: Lab) -> str | None:
    """crun, in a script where it would refuse the machine."""
    program = shutil.which("crun")
    if program is None or not UNIFIED.exists():
        return program
    script = lab.directory / "crun"
    script.write_text(WITHOUT_UNIFIED.format(unified=UNIFIED, program=program))
    script.chmod(0o755)
    return str(script)


PEERS = [
    Peer("crun", crun, "apt-get install crun"),
    Peer("runsc", lambda _lab: gvisor.find(), "python -m tests.bench.gvisor builds it (Go, three minutes)"),
]


def flags(lab: Lab) -> dict[str, tuple[str, ...]]:
    """Name -> ctr's flags of what runs here."""
    found: dict[str, tuple[str, ...]] = {"runc": ("--runtime", RUNC_SHIM)}
    for peer in PEERS:
        program = peer.program(lab)
        if program is None:
            lab.without(peer.name, peer.how)
            continue
        words = ("--runtime", RUNC_SHIM, "--runc-binary", program)
        try:
            CtrRun(lab, lab.engine, words)()
            found[peer.name] = words
        except RunFailed as exc:
            lab.without(peer.name, f"installed, does not run here: {str(exc)[-200:].strip()}")
    return found


def run(lab: Lab) -> list[Subject]:
    """`ctr run`."""
    return [
        Subject((FIRST.format(name), RUN.format(name)), CtrRun(lab, lab.engine, words)) for name, words in flags(lab).items()
    ]


def execs(lab: Lab) -> list[Subject]:
    """`ctr task exec`."""
    return [single(EXEC.format(name), CtrExec(lab, words)) for name, words in flags(lab).items()]


def execs_on_stack(lab: Lab, stack: Stack) -> list[Subject]:
    """The same in hako's containers."""
    words = ("--runtime", HAKO, "--runtime-config-path", str(lab.config(TEMPLATE, stack)))
    return [single(on(EXEC.format("hako"), stack), CtrExec(lab, words))]


RUN_ROWS = [Row(f"`ctr run ... echo`, {peer.name}, over runc", RUN.format(peer.name), RUNC) for peer in PEERS]
EXEC_ROWS = [
    Row("`ctr task exec ... /bin/true` over runc", EXEC.format("hako"), EXEC.format("runc"), must=1.5, aim=0.5),
    *(Row(f"`ctr task exec`, {peer.name}, over runc", EXEC.format(peer.name), EXEC.format("runc")) for peer in PEERS),
    Row("`ctr task exec`, runc, over F_fork on the host", EXEC.format("runc"), F_FORK_HOST, detail=True),
]
