"""Group `scale`: a start beside many live pods, a container beside many others in its pod, the shims' memory.

Owns: making the many. Starts alone are measured before and after those beside many, so that a machine that grows slower
or quicker meanwhile does not pass for an effect. A start is the shim's command and Create; all is as configured by
default, so from the second pod on the forkserver makes the pod processes.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from tests.bench.lab import MANY, Lab
from tests.bench.measure import Sample, called, command, pss, tree
from tests.bench.pod import Pod
from tests.bench.rows import Figure, Row, Samples

ALONE, BESIDE = "pod started and created beside no other", "pod started and created beside {} others"
SECOND, HUNDREDTH = "container 2 to 6 of a pod", "container 96 to 100 of a pod"
CONTAINERS = 100
NEAR = 5
MIB = 1 << 20


def measure(lab: Lab, samples: Samples, pods: int, starts: int) -> list[Figure]:
    """Both; `starts` pods are timed alone and beside `pods` others. The samples go to `samples`."""
    _containers(lab, samples)
    return _pods(lab, samples, pods, starts)


def rows(pods: int) -> list[Row]:
    """What is made of the samples."""
    return [
        Row(f"pod started beside {pods} others, over alone", BESIDE.format(pods), ALONE, must=1.5, aim=1.2),
        Row("96th to 100th container of a pod over the 2nd to 6th", HUNDREDTH, SECOND, must=1.5, aim=1.2),
    ]


def _pods(lab: Lab, samples: Samples, pods: int, starts: int) -> list[Figure]:
    alone = [_start(lab) for _ in range(starts - starts // 2)]
    with ExitStack() as live:
        others = [live.enter_context(Pod(lab, MANY)) for _ in range(pods)]
        for pod in others:
            pod.run()
        beside = [_start(lab) for _ in range(starts)]
        memory = _shims(others) / len(others) / MIB
    alone += [_start(lab) for _ in range(starts // 2)]
    samples.taken[ALONE] = [Sample(wall, None) for wall in alone]
    samples.taken[BESIDE.format(pods)] = [Sample(wall, None) for wall in beside]
    return [Figure(f"shim and its share of the forkserver beside {pods} pods: PSS of each", memory, "MiB", 18.0, 6.0)]


def _shims(pods: list[Pod]) -> int:
    """Bytes of the pod processes and of what forks them."""
    forkservers = [pid for pid in tree(os.getpid()) if " forkserver" in command(pid)]
    return sum(pss(pid) for pid in {*forkservers, *(pod.pid for pod in pods)})


def _start(lab: Lab) -> float:
    with Pod(lab, MANY) as pod:
        return pod.start() + pod.create().created


def _containers(lab: Lab, samples: Samples) -> None:
    """Create and Start of each, `sleep` in all of them."""
    with Pod(lab, MANY, several=True) as pod:
        pod.run()
        taken = [called(lambda: pod.add(lab.unique("c"), ["sleep", "1000000"])) for _ in range(2, CONTAINERS + 1)]
    samples.taken[SECOND] = [Sample(wall, None) for wall in taken[:NEAR]]
    samples.taken[HUNDREDTH] = [Sample(wall, None) for wall in taken[-NEAR:]]
