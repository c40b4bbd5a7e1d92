"""Groups `cold`, `template`, `disks`: a pod and a container's first byte, for each way to start, on each stack.

"Pod ready" is what the shim is told with Create (of a pause-like container, by the task API) until its log says that
the sandbox exists in the guest: daemons, VM, agent's answer, CreateSandbox. "Pod created" is Create's whole answer:
the container is in the guest too. "Clone to hello" is a part of the way to ready, by the shim's own account: from the start of
QEMU and of the copy of its memory until the guest has seen its devices, which is what F_restore is of a bare VM. The shim's
`start` command is before all of these and has a row of its own (group `start`).
Roots on disks start from the same template; their image is packed before the first round that counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from tests.bench.engine import CtrRun
from tests.bench.floors import F_BOOT, F_RESTORE
from tests.bench.lab import Lab
from tests.bench.measure import RunFailed, first_byte
from tests.bench.peers import FIRST, RUN, RUNC
from tests.bench.pod import Pod
from tests.bench.quoted import KATA_FIRST
from tests.bench.rows import Row
from tests.bench.settings import COLD, DISKS, RESTORED, TEMPLATE
from tests.bench.stacks import Stack, on
from tests.bench.subjects import Subject, single
from tests.framework.containerd import HAKO

READY, CREATED, BY_HAND = "pod ready, {}", "pod created, {}", "hako run to first byte, {}"
HELLO = "clone to hello, {}"


def name(stem: str, mode: str) -> str:
    """What is measured, of hako."""
    return stem.format(f"hako {mode}" if stem in (RUN, FIRST) else mode)


def pod_start(lab: Lab, mode: str, stack: Stack) -> tuple[float, ...]:
    """Start a pod and end it: seconds until it is ready, and until it is created; of a clone, from its start to its hello."""
    with Pod(lab, mode, stack) as pod:
        pod.start()
        told = pod.create()
        times = told.ready or told.created, told.created
        return (*times, hello(told.steps)) if mode in RESTORED else times


def hello(steps: str) -> float:
    """Seconds of these steps of a clone's start, which are told in milliseconds. Raises RunFailed if the pod booted instead."""
    found = [re.search(rf"\b{step} (\d+)", steps) for step in ("restore", "boot")]
    if not all(found):
        raise RunFailed(f"the pod was not restored: {steps}")
    return sum(int(step[1]) for step in found if step) / 1000


def by_hand(lab: Lab, mode: str, stack: Stack) -> Callable[[], float]:
    """`hako run` of a container that says a word."""
    words = ("run", "--rm", "--network", "none", lab.hako.image, "echo", "x")
    environment = lab.hako.environment | {"HAKO_CONFIG": str(lab.config(mode, stack))}
    return lambda: first_byte(lab.hako.argv(*words), environment)


def containers(lab: Lab, mode: str, stack: Stack) -> list[Subject]:
    """By an engine, and by hand."""
    flags = ("--runtime", HAKO, "--runtime-config-path", str(lab.config(mode, stack)))
    return [
        Subject(tuple(on(name(stem, mode), stack) for stem in (FIRST, RUN)), CtrRun(lab, lab.engine, flags)),
        single(on(name(BY_HAND, mode), stack), by_hand(lab, mode, stack)),
    ]


def pods(lab: Lab, mode: str, stack: Stack) -> list[Subject]:
    """By the task API."""
    names = tuple(on(name(stem, mode), stack) for stem in (READY, CREATED))
    parts = (on(name(HELLO, mode), stack),) if mode in RESTORED else ()
    return [Subject((*names, *parts), partial(pod_start, lab, mode, stack), parts=parts)]


def cold(lab: Lab, stack: Stack) -> list[Subject]:
    """Pods that boot."""
    return [*pods(lab, COLD, stack), *containers(lab, COLD, stack)]


def from_template(lab: Lab, stack: Stack) -> list[Subject]:
    """Pods that are restored."""
    return [*pods(lab, TEMPLATE, stack), *containers(lab, TEMPLATE, stack)]


def from_disks(lab: Lab, stack: Stack) -> list[Subject]:
    """Pods without a shared file system."""
    return containers(lab, DISKS, stack)


COLD_ROWS = [
    Row("pod ready, cold, over F_boot", name(READY, COLD), F_BOOT, must=2.0, aim=1.4),
    Row("pod created, cold, over F_boot", name(CREATED, COLD), F_BOOT, detail=True),
    Row("first byte of `hako run`, cold, over F_boot", name(BY_HAND, COLD), F_BOOT),
    Row("first byte of `ctr run`, cold, over F_boot", name(FIRST, COLD), F_BOOT),
    Row("`ctr run ... echo`, cold, over runc", name(RUN, COLD), RUNC),
]
TEMPLATE_ROWS = [
    Row("pod ready, template, over F_boot", name(READY, TEMPLATE), F_BOOT, must=0.35, aim=0.15),
    Row("clone to hello over F_restore", name(HELLO, TEMPLATE), F_RESTORE),
    Row("pod ready, template, over F_restore", name(READY, TEMPLATE), F_RESTORE),
    Row("pod ready, template, over cold", name(READY, TEMPLATE), name(READY, COLD)),
    Row("pod created, template, over F_boot", name(CREATED, TEMPLATE), F_BOOT, detail=True),
    Row("first byte of `hako run`, template, over F_boot", name(BY_HAND, TEMPLATE), F_BOOT),
    Row("first byte of `ctr run`, template, over F_boot", name(FIRST, TEMPLATE), F_BOOT, aim=0.2 * KATA_FIRST),
    Row("`ctr run ... echo`, template, over runc", name(RUN, TEMPLATE), RUNC, must=4, aim=3),
]
DISKS_ROWS = [
    Row("`ctr run ... echo`, template: root by disk over virtio-fs", name(RUN, DISKS), name(RUN, TEMPLATE)),
    Row("first byte of `hako run`, template: root by disk over virtio-fs", name(BY_HAND, DISKS), name(BY_HAND, TEMPLATE)),
]
