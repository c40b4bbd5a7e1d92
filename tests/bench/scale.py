"""Group `scale`: a start beside many live pods, a container beside many others in its pod, the shims' memory.

Owns: making the many. Starts alone are measured before and after those beside many, so that a machine that grows slower
or quicker meanwhile does not pass for an effect. A start is the shim's command and Create; all is as configured by
default, so from the second pod on the forkserver makes the pod processes.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial

from tests.bench.lab import Lab
from tests.bench.measure import Sample, busy, command, measured, pss, tree
from tests.bench.pod import Pod
from tests.bench.rows import Figure, Row
from tests.bench.settings import MANY
from tests.bench.stacks import Stack, on
from tests.bench.subjects import Samples

ALONE, BESIDE = "pod started and created beside no other", "pod started and created beside {} others"
SECOND, HUNDREDTH = "container 2 to 6 of a pod", "container 96 to 100 of a pod"
CONTAINERS = 100
NEAR = 5
MIB = 1 << 20


def figures(lab: Lab, samples: Samples, pods: int, rounds: int, stack: Stack) -> list[Figure]:
    """`rounds` pods are timed alone and beside `pods` others, as many containers in several pods. Times go to `samples`."""
    for _ in range(-(-rounds // NEAR)):
        _containers(lab, stack, samples)
    return [_pods(lab, stack, samples, pods, rounds)]


def rows(pods: int) -> list[Row]:
    """What is made of the samples."""
    return [
        Row(f"pod started beside {pods} others, over alone", BESIDE.format(pods), ALONE, must=1.5, aim=1.2),
        Row("96th to 100th container of a pod over the 2nd to 6th", HUNDREDTH, SECOND, must=1.5, aim=1.2),
    ]


def _pods(lab: Lab, stack: Stack, samples: Samples, pods: int, rounds: int) -> Figure:
    def start(name: str, count: int) -> None:
        for _ in range(count):
            samples.add(on(name, stack), Sample(*measured(partial(_start, lab, stack))))

    start(ALONE, rounds - rounds // 2)
    with ExitStack() as live:
        others = [live.enter_context(Pod(lab, MANY, stack)) for _ in range(pods)]
        for pod in others:
            pod.run()
        start(BESIDE.format(pods), rounds)
        memory = _shims(others) / len(others) / MIB
    start(ALONE, rounds // 2)
    name = f"shim and its share of the forkserver beside {pods} pods: PSS of each"
    return Figure(name, memory, "MiB", 18.0, 6.0, stack.name)


def _shims(pods: list[Pod]) -> int:
    """Bytes of the pod processes and of what forks them."""
    forkservers = [pid for pid in tree(os.getpid()) if " forkserver" in command(pid)]
    return sum(pss(pid) for pid in {*forkservers, *(pod.pid for pod in pods)})


def _start(lab: Lab, stack: Stack) -> float:
    with Pod(lab, MANY, stack) as pod:
        return pod.start() + pod.create().created


def _containers(lab: Lab, stack: Stack, samples: Samples) -> None:
    """Create and Start of each, `sleep` in all of them."""
    with Pod(lab, MANY, stack, several=True) as pod:
        pod.run()
        taken = [_added(lab, pod) for _ in range(2, CONTAINERS + 1)]
    for name, near in ((SECOND, taken[:NEAR]), (HUNDREDTH, taken[-NEAR:])):
        for sample in near:
            samples.add(on(name, stack), sample)


def _added(lab: Lab, pod: Pod) -> Sample:
    """One more container, and the processor time of the pod meanwhile."""
    pids = tree(pod.pid)
    before = busy(pids)
    wall = pod.add(lab.unique("c"), ["sleep", "1000000"])
    return Sample(wall, busy(tree(pod.pid)) - before)
