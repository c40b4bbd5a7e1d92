"""Group `boot`: a pod and the first byte of a container, cold and from a template, over the floor.

"Pod ready" is what the shim is told with Create (of a pause-like container, by the task API) until its log says that
the sandbox exists in the guest: daemons, VM, agent's answer, CreateSandbox. "Pod created" is Create's whole answer:
the container is in the guest too. The shim's `start` command is before both and has a row of its own (group `start`).
"""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.floors import F_BOOT
from tests.bench.lab import COLD, TEMPLATE, Lab
from tests.bench.measure import first_byte
from tests.bench.pod import Created, Pod, with_pod
from tests.bench.rows import Row, Subject

READY, CREATED, BY_HAND = "pod ready, {}", "pod created, {}", "hako run to first byte, {}"


class PodStart:
    """One kind of pod: the same start gives two times."""

    def __init__(self, lab: Lab, mode: str) -> None:
        self._lab = lab
        self._mode = mode
        self._last = Created(0.0, 0.0)

    def ready(self) -> float:
        """Start a pod and end it."""

        def create(pod: Pod) -> float:
            self._last = pod.create()
            return self._last.ready or self._last.created

        return with_pod(self._lab, self._mode, create)

    def created(self) -> float:
        """Of the pod that `ready` started."""
        return self._last.created


def by_hand(lab: Lab, mode: str) -> Callable[[], float]:
    """`hako run` of a container that says a word."""
    words = ("run", "--rm", "--network", "none", lab.hako.image, "echo", "x")
    environment = lab.hako.environment | {"HAKO_CONFIG": str(lab.configs[mode])}
    return lambda: first_byte(lab.hako.argv(*words), environment)


def open_group(lab: Lab) -> list[Subject]:
    """Pods by the task API, and containers by hand."""
    subjects = []
    for mode in (COLD, TEMPLATE):
        start = PodStart(lab, mode)
        subjects += [
            Subject(READY.format(mode), start.ready),
            Subject(CREATED.format(mode), start.created, alone=False),
            Subject(BY_HAND.format(mode), by_hand(lab, mode)),
        ]
    return subjects


ROWS = [
    Row("pod ready, cold, over F_boot", READY.format(COLD), F_BOOT, must=2.0, aim=1.4),
    Row("pod created, cold, over F_boot", CREATED.format(COLD), F_BOOT),
    Row("first byte of `hako run`, cold, over F_boot", BY_HAND.format(COLD), F_BOOT),
    Row("pod ready, template, over F_boot", READY.format(TEMPLATE), F_BOOT, must=0.35, aim=0.15),
    Row("pod created, template, over F_boot", CREATED.format(TEMPLATE), F_BOOT),
    Row("first byte of `hako run`, template, over F_boot", BY_HAND.format(TEMPLATE), F_BOOT),
]
