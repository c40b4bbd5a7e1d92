"""Groups `vsock` and `stdio`: a round trip to the agent, and bulk output, beside a bare stream of the same guest.

Owns: what is sent. The bare guest (bare.py) has the same machine, daemons and kernel and no agent: its bytes come from
a loop around send(2).
"""

from __future__ import annotations

import os
import statistics
import time

from agent.api import agent_pb2, health_pb2
from agent.ttrpc.client import Client
from tests.bench.bare import BareGuest
from tests.bench.lab import COLD, Lab
from tests.bench.measure import RunFailed, readable
from tests.bench.pod import Pod
from tests.bench.rows import Row, Subject

PINGS = 100
MIB = 100
CHUNK = 64 << 10
STALL = 30.0  # seconds without a byte
PING, DETAILS = "agent round trip, Check", "agent round trip, GetGuestDetails"
THROUGH, RAW = f"{MIB} MiB through a container's stdout", f"{MIB} MiB by raw vsock"


def open_vsock(lab: Lab) -> list[Subject]:
    """The median of a hundred calls is one sample."""
    client = Client(lab.idle_pod(COLD).dial_agent())
    lab.undo.callback(client.close)

    def ping() -> None:
        client.call("grpc.Health", "Check", health_pb2.CheckRequest(), health_pb2.HealthCheckResponse, 10)

    def details() -> None:
        request = agent_pb2.GuestDetailsRequest()
        client.call("grpc.AgentService", "GetGuestDetails", request, agent_pb2.GuestDetailsResponse, 10)

    return [
        Subject(PING, lambda: _median(ping), alone=False),
        Subject(DETAILS, lambda: _median(details), alone=False),
    ]


def _median(call: object) -> float:
    taken = []
    for _ in range(PINGS):
        begin = time.perf_counter()
        call()  # type: ignore[operator]
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def open_stdio(lab: Lab) -> list[Subject]:
    """Both from the first byte to the last."""
    pod, bare = lab.idle_pod(COLD), lab.bare_guest
    return [Subject(THROUGH, lambda: _through(lab, pod)), Subject(RAW, lambda: _raw(bare))]


def _through(lab: Lab, pod: Pod) -> float:
    """`dd` in a container writes to its stdout, which is a fifo as engines make it."""
    name = lab.unique("o")
    path = pod.fifo(name)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        pod.exec(pod.name, name, ["dd", "if=/dev/zero", f"bs={CHUNK}", f"count={(MIB << 20) // CHUNK}"], stdout=str(path))
        seconds = _drain(fd)
        pod.call("Wait", id=pod.name, exec_id=name)
        pod.call("Delete", id=pod.name, exec_id=name)
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


VSOCK_ROWS: list[Row] = []
STDIO_ROWS = [Row(f"stdio {MIB} MiB, speed over raw vsock", THROUGH, RAW, must=0.5, aim=0.8, speed=True)]
