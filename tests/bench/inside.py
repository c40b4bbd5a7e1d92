"""Groups `inside` and `stdio`: what happens in a pod that is there: calls of the agent, processes, containers, output.

Owns: what is called and sent. The pods come from the template. The bare guest (bare.py) has the same machine, daemons and
kernel and no agent: its bytes come from a loop around send(2).
"""

from __future__ import annotations

import os
import time
from functools import partial

from agent.api import health_pb2
from agent.ttrpc.client import Client
from tests.bench.bare import BareGuest
from tests.bench.bare_init import zeros
from tests.bench.floors import F_FORK, F_PING, PINGS, median
from tests.bench.lab import Lab
from tests.bench.measure import RunFailed, readable
from tests.bench.pod import Pod
from tests.bench.rows import Row
from tests.bench.settings import TEMPLATE
from tests.bench.stacks import Stack, on
from tests.bench.subjects import Subject, single

MIB = 100
STALL = 30.0  # seconds without a byte
CHECK, EXEC, CONTAINER = "agent round trip, Check", "exec of /bin/true by the task API", "container of /bin/true in a warm pod"
THROUGH, RAW = f"{MIB} MiB through a container's stdout", f"{MIB} MiB by raw vsock"


def on_stack(lab: Lab, stack: Stack) -> list[Subject]:
    """Calls, processes and containers."""
    pod = lab.idle_pod(TEMPLATE, stack, several=True)
    client = Client(pod.dial_agent())
    lab.undo.callback(client.close)
    return [
        single(on(CHECK, stack), partial(median, partial(check, client)), repeats=PINGS),
        single(on(EXEC, stack), partial(executed, lab, pod)),
        single(on(CONTAINER, stack), partial(contained, lab, pod)),
    ]


def check(client: Client) -> None:
    """The agent's shortest call."""
    client.call("grpc.Health", "Check", health_pb2.CheckRequest(), health_pb2.HealthCheckResponse, 10)


def executed(lab: Lab, pod: Pod) -> float:
    """Exec, Start, Wait and Delete."""
    name = lab.unique("x")
    begin = time.perf_counter()
    pod.exec(pod.name, name, ["/bin/true"])
    pod.finish(pod.name, name)
    return time.perf_counter() - begin


def contained(lab: Lab, pod: Pod) -> float:
    """Create, Start, Wait and Delete."""
    name = lab.unique("x")
    begin = time.perf_counter()
    pod.add(name, ["/bin/true"])
    pod.finish(name)
    return time.perf_counter() - begin


def stdio(lab: Lab, stack: Stack) -> list[Subject]:
    """Both from the first byte to the last."""
    pod = lab.idle_pod(TEMPLATE, stack, several=True)
    return [
        single(on(THROUGH, stack), partial(_through, lab, pod)),
        single(on(RAW, stack), partial(_raw, lab.bare_guest(stack))),
    ]


def _through(lab: Lab, pod: Pod) -> float:
    """`dd` in a container writes to its stdout, which is a fifo as engines make it."""
    name = lab.unique("o")
    path = pod.fifo(name)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        pod.exec(pod.name, name, zeros(MIB << 20), stdout=str(path))
        seconds = _drain(fd)
        pod.finish(pod.name, name)
        return seconds
    finally:
        os.close(fd)
        path.unlink()


def _raw(bare: BareGuest) -> float:
    with bare.stream(MIB << 20) as sock:
        return _drain(sock.fileno())


def _drain(fd: int) -> float:
    """Seconds from the first byte until all are there."""
    left, begin = MIB << 20, 0.0
    while left:
        if not readable(fd, STALL):
            raise RunFailed(f"{left} bytes are missing and none came for {STALL:g} s")
        data = os.read(fd, 1 << 20)
        if not data:
            raise RunFailed(f"the stream ended {left} bytes too early")
        begin = begin or time.perf_counter()
        left -= len(data)
    return time.perf_counter() - begin


ROWS = [
    Row("agent's Check over F_ping", CHECK, F_PING),
    Row("exec of /bin/true by the task API over F_fork", EXEC, F_FORK),
    Row("container of /bin/true in a warm pod over F_fork", CONTAINER, F_FORK),
]
STDIO_ROWS = [Row(f"stdio {MIB} MiB, speed over raw vsock", THROUGH, RAW, must=0.5, aim=0.8, speed=True)]
