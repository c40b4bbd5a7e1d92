"""Group `memory`: what an idle pod of 256 MiB costs the host in memory and processor time, and the agent in the guest.

Owns: which process is which. PSS, so that what processes share is counted once. The pod has one container that sleeps.
"""

from __future__ import annotations

import time

from agent.api import agent_pb2
from agent.ttrpc.client import Client
from tests.bench import floors
from tests.bench.lab import COLD, DISKS, TEMPLATE, Lab
from tests.bench.measure import busy, command, pss, rss, tree
from tests.bench.pod import Pod
from tests.bench.rows import Figure

REST = 3.0  # seconds after the start before anything is looked at
WATCH = 10.0  # seconds in which processor time is counted
MIB = 1 << 20
NAMES = {"qemu-system": "QEMU", "virtiofsd": "virtiofsd", "vhost-device-vsock": "vsock daemon", "/bin/sleep": "stub"}
BOUNDS: dict[str, tuple[float | None, float | None]] = {COLD: (None, None), TEMPLATE: (110.0, 60.0), DISKS: (None, None)}


def figures(lab: Lab) -> list[Figure]:
    """For each way to start a pod."""
    found = []
    for mode in (COLD, TEMPLATE, DISKS):
        with Pod(lab, mode) as pod:
            pod.run()
            time.sleep(REST)
            found += _memory(pod, mode)
            found += _agent(pod, mode)
            with floors.idle(lab) as bare:
                found += _idle_time(pod, mode, bare)
    return found


def name_of(pid: int) -> str:
    """What a process of a pod is."""
    words = command(pid)
    return next((name for mark, name in NAMES.items() if mark in words.split(" ")[0]), "shim")


def _memory(pod: Pod, mode: str) -> list[Figure]:
    by_name: dict[str, list[int]] = {}
    for pid in tree(pod.pid):
        known = by_name.setdefault(name_of(pid), [0, 0])
        known[0] += pss(pid)
        known[1] += rss(pid)
    must, aim = BOUNDS[mode]
    found = [Figure(f"idle pod, {mode}: PSS of all its processes", sum(v[0] for v in by_name.values()) / MIB, "MiB", must, aim)]
    for name, (proportional, resident) in sorted(by_name.items()):
        found.append(Figure(f"idle pod, {mode}: PSS of {name}", proportional / MIB, "MiB"))
        found.append(Figure(f"idle pod, {mode}: RSS of {name}", resident / MIB, "MiB"))
    return found


def _agent(pod: Pod, mode: str) -> list[Figure]:
    client = Client(pod.dial_agent())
    try:
        metrics = client.call("grpc.AgentService", "GetMetrics", agent_pb2.GetMetricsRequest(), agent_pb2.Metrics, 20).metrics
    finally:
        client.close()
    resident = next(line.split()[1] for line in metrics.splitlines() if line.startswith("kata_agent_total_rss "))
    return [Figure(f"agent in the guest, {mode}: RSS", int(resident) / MIB, "MiB", 20.0, 12.0)]


def _idle_time(pod: Pod, mode: str, bare: int) -> list[Figure]:
    """Per cent of a core, beside a VM that has nothing to do, in the same seconds."""
    pids = tree(pod.pid)
    before, floor = busy(pids), busy([bare])
    time.sleep(WATCH)
    ours, theirs = (busy(pids) - before) / WATCH * 100, (busy([bare]) - floor) / WATCH * 100
    return [
        Figure(f"idle pod, {mode}: processor time", ours, "% of a core"),
        Figure("idle bare VM: processor time", theirs, "% of a core"),
        Figure(f"idle pod, {mode}: processor time over the bare VM's", ours / theirs, "x", 1.5, 1.1),
    ]
