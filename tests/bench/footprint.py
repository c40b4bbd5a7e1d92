"""Group `memory`: what an idle pod of 256 MiB costs the host in memory and processor time, and the agent in the guest.

Owns: which process is which. PSS, so that what processes share is counted once; one pod at a time. It has one container that
sleeps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from agent.api import agent_pb2
from agent.ttrpc.client import Client
from shim.hypervisor.vsock import VHOST_VSOCK
from tests.bench import floors
from tests.bench.lab import Lab
from tests.bench.measure import busy, command, pss, rss, tree
from tests.bench.pod import Pod
from tests.bench.rows import Figure, Line
from tests.bench.settings import COLD, DISKS, TEMPLATE
from tests.bench.stacks import Stack

REST = 3.0  # seconds after the start before anything is looked at
WATCH = 10.0  # seconds in which processor time is counted
MIB = 1 << 20
NAMES = {"qemu-system": "QEMU", "virtiofsd": "virtiofsd", "vhost-device-vsock": "vsock daemon", "/bin/cat": "stub"}
BOUNDS: dict[str, tuple[float | None, float | None]] = {COLD: (None, None), TEMPLATE: (110.0, 60.0), DISKS: (None, None)}


def figures(lab: Lab, stack: Stack) -> list[Figure]:
    """For each way to start a pod."""
    found = []
    for mode in (TEMPLATE, COLD, DISKS):
        with Pod(lab, mode, stack) as pod:
            pod.run()
            time.sleep(REST)
            found += [*_memory(pod, mode), _agent(pod, mode)]
            if mode == TEMPLATE:
                with floors.idle(lab, stack) as bare:
                    found += _idle_time(pod, bare)
    return [figure._replace(stack=stack.name) for figure in found]


def private_memory() -> Line:
    """Clones that share unwritten pages with their template: not to be had with a vsock daemon, which maps the memory."""
    if os.path.exists(VHOST_VSOCK):
        note = "not measured: hako copies the memory on every host"
    else:
        note = f"not measurable here: needs {VHOST_VSOCK}"
    return Line("idle pod, private copy-on-write memory: PSS of all its processes", {}, note=note)


def name_of(pid: int) -> str:
    """What a process of a pod is."""
    words = command(pid)
    return next((name for mark, name in NAMES.items() if mark in words.split(" ")[0]), "shim")


def _memory(pod: Pod, mode: str) -> Iterator[Figure]:
    by_name: dict[str, list[int]] = {}
    for pid in tree(pod.pid):
        known = by_name.setdefault(name_of(pid), [0, 0])
        known[0] += pss(pid)
        known[1] += rss(pid)
    total = sum(proportional for proportional, _ in by_name.values())
    yield Figure(f"idle pod, {mode}: PSS of all its processes", total / MIB, "MiB", *BOUNDS[mode])
    for name, sizes in sorted(by_name.items()):
        for kind, size in zip(("PSS", "RSS"), sizes, strict=True):
            yield Figure(f"idle pod, {mode}: {kind} of {name}", size / MIB, "MiB", detail=True)


def _agent(pod: Pod, mode: str) -> Figure:
    client = Client(pod.dial_agent())
    try:
        metrics = client.call("grpc.AgentService", "GetMetrics", agent_pb2.GetMetricsRequest(), agent_pb2.Metrics, 20).metrics
    finally:
        client.close()
    resident = next(line.split()[1] for line in metrics.splitlines() if line.startswith("kata_agent_total_rss "))
    return Figure(f"agent in the guest, {mode}: RSS", int(resident) / MIB, "MiB", 20.0, 12.0, detail=mode != TEMPLATE)


def _idle_time(pod: Pod, bare: int) -> list[Figure]:
    """Per cent of a core, beside a VM that has nothing to do, in the same seconds."""
    pids = tree(pod.pid)
    before, floor = busy(pids), busy([bare])
    time.sleep(WATCH)
    ours, theirs = (busy(pids) - before) / WATCH * 100, (busy([bare]) - floor) / WATCH * 100
    return [
        Figure("idle pod: processor time", ours, "% of a core", detail=True),
        Figure("idle bare VM beside it: processor time", theirs, "% of a core", detail=True),
        Figure("idle pod: processor time over the bare VM's", ours / theirs, "x", 1.5, 1.1),
    ]
