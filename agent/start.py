"""The agent's life: as PID 1 of a guest, or as a plain process on a unix socket (for tests).

Owns the order of things. As PID 1 the machine's set-up comes first (agent.init), the hello line last, and the
agent's end switches the machine off. Called by __main__ with the garbage collector off.

In a template (kernel parameter agent.template=1) the agent warms up before its hello and says that it may be
saved; each clone goes on from there when its vsock device is back (agent.arrival).
"""

from __future__ import annotations

import _socket
import gc
import os
import sys
import time
from time import monotonic_ns

from agent import arrival, config, init, log, orphans, rehearsal, sandbox_storages, spans, storage, warm
from agent.api import LEVEL
from agent.container import container
from agent.linux import procfs, vsock
from agent.linux.loop import Loop
from agent.sandbox import Sandbox
from agent.service import Service
from agent.streams import Streams
from agent.ttrpc.server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.api import pool_pb2

HELLO = b"hako-agent: ready %d\n" % LEVEL
TEMPLATE = b"hako-agent: template %d\n" % LEVEL
REST = b"hako-agent: rests %d\n"
"""milliseconds until TEMPLATE, by which the host sees whether our clock is right"""
CONSOLE = "/dev/console"
REST_SECONDS = 2.5
"""Before a template is saved: free pages are reported to the host two seconds after the last was freed (PAGE_REPORTING_DELAY
in the kernel's mm/page_reporting.c), and each clone would do it again
"""
LAST_ANSWER_SECONDS = 1.0
"""After DestroySandbox: what its answer may take to reach the host."""


class Agent:
    """Everything that runs, put together."""

    def __init__(self, chosen: config.Config, *, is_init: bool) -> None:
        self.loop = Loop(on_error=lambda exc: log.exception("callback", exc))
        rpc, stdio = _listeners(chosen)
        self.streams = Streams(self.loop, stdio)
        self.sandbox = Sandbox(self.loop, chosen, self.streams)
        service = Service(
            self.sandbox, is_init=is_init, on_destroyed=self.end, on_exercise=lambda wanted: self._exercise(wanted, chosen.share)
        )
        self.server = Server(self.loop, service.services(), on_error=_report)
        family = rpc.family
        self.server.listen(rpc, admit=lambda address: vsock.is_host(family, address))
        container.prepare()

    def close(self) -> None:
        """Stop listening; what the sandbox has is the sandbox's."""
        self.server.close()
        self.streams.close()
        self.loop.close()

    def _exercise(self, wanted: pool_pb2.ExerciseRequest, share: str) -> None:
        """Our own sandbox, which a template's agent has prepared, makes room for the throw-away one."""
        self.sandbox.unprepare()
        try:
            exercise(wanted, share)
        finally:
            self.sandbox.stand_by()

    def end(self) -> None:
        """Stop once the answer that is being made was sent and its receiver has had time to take it."""
        self.loop.call_later(LAST_ANSWER_SECONDS, self.loop.stop)
        self.loop.call_soon(self._stop_when_left)

    def _stop_when_left(self) -> None:
        """The host hangs up when it has the answer."""
        if self.server.connections:
            self.loop.call_later(0.01, self._stop_when_left)
        else:
            self.loop.stop()


def exercise(wanted: pool_pb2.ExerciseRequest, share: str) -> None:
    """What hako.Pool asks for, with the share that was saved mounted; its spans are nobody's."""
    warm.rehearse(lambda rehearsed: Agent(rehearsed, is_init=True), wanted, share)
    spans.forget()


def run(arguments: list[str]) -> int:
    """Exit status; does not return as PID 1 of a guest. `arguments` without the program's name."""
    began = monotonic_ns()
    try:
        chosen = config.from_arguments(arguments)
    except config.ConfigError as error:
        print(f"hako-agent: {error}", file=sys.stderr)
        return 2
    if chosen.unix_path:
        serve(chosen, began, is_init=False)
        return 0
    spans.keep("kernel and interpreter", "", 0)  # a guest's monotonic clock begins with its kernel
    try:
        init.setup()
        config.apply_kernel_parameters(chosen, procfs.kernel_parameters())
        serve(chosen, began, is_init=True)
    except BaseException as exc:  # noqa: BLE001 - the kernel would panic without saying why
        log.exception("cannot go on", exc)
    init.poweroff()
    return 1


def serve(chosen: config.Config, began: int, *, is_init: bool) -> None:
    """Listen, say hello, and serve until the sandbox is destroyed. `began`: when we did, by the monotonic clock."""
    log.set_level(chosen.log)
    if chosen.template:
        if chosen.share:
            storage.mount(sandbox_storages.share(chosen.share), chosen.hotplug_seconds)
        warm.drop_caches()
        warm.rehearse(lambda rehearsed: Agent(rehearsed, is_init=is_init))
        if chosen.rehearse:
            rehearsal.begin()
    agent = Agent(chosen, is_init=is_init)
    if os.getpid() == 1:
        orphans.begin(agent.loop)
    console = os.open(CONSOLE, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC) if is_init else 1
    # What is there now stays: collections need not look at it, and forks need not copy its pages.
    gc.freeze()
    gc.enable()
    if chosen.template:
        agent.sandbox.stand_by()
        warm.clear_free_memory()
        spans.forget()
        arriving = arrival.Arrival()
        os.write(console, REST % (REST_SECONDS * 1000))
        time.sleep(REST_SECONDS)
        began = monotonic_ns()  # the clock of a clone goes on from here
        os.write(console, TEMPLATE)
        arriving.wait(HELLO)
        rehearsal.go()
    else:
        os.write(console, HELLO)
    spans.keep("agent", "", began)
    agent.loop.run()


def _listeners(chosen: config.Config) -> tuple[_socket.socket, _socket.socket]:
    if not chosen.unix_path:
        return vsock.listen(chosen.port), vsock.listen(chosen.stdio_port)
    return _listen_unix(chosen.unix_path), _listen_unix(chosen.unix_path + ".stdio")


def _listen_unix(path: str) -> _socket.socket:
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.bind(path)
    sock.listen(vsock.BACKLOG)
    return sock


def _report(exc: Exception, where: str) -> None:
    log.exception(where, exc)
