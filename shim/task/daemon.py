"""The pod process: one loop, one ttrpc server, one sandbox; from the fork in `start` until the engine says
Shutdown.

Owns: wiring, signals, the process's own end. Must not know: the methods (service.py), the VM
(shim/sandbox). Called by bootstrap.py in the forked child; the loop runs in the main thread, each request
in one of its own.

It ends when the engine asks (Shutdown, no task left), upon SIGTERM (the pod is ended first), or by itself when it has no
task for a quarter of a minute: an engine that died before its first Create never comes back for us, even if its successor
connects. A `hako run` that was killed between Create and Start does not either: then its container goes.
"""

from __future__ import annotations

import os
import signal
import threading
from _socket import socket
from typing import TYPE_CHECKING

from agent.linux.loop import Loop
from agent.ttrpc.server import Server
from shim import config as configuration
from shim import trace
from shim.errors import ConfigError, HakoError
from shim.log import Log
from shim.sandbox.builder import HostFactory
from shim.sandbox.sandbox import Sandbox
from shim.task import autoremove, forkclient, tracing
from shim.task.events import Publisher
from shim.task.service import SERVICES, TaskService

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.sandbox.ahead import Ahead
    from shim.sandbox.spare import Spare
    from shim.task.flags import Invocation
    from shim.task.options import Options

IDLE = 15.0  # seconds that an engine may leave us without a container; it calls Create right after `start`
FLUSH = 0.02  # seconds between looks whether the last answers are out
LAST_EVENTS = 3.0  # seconds for the engine to take the last events


def run(
    listener: socket,
    path: str,
    invocation: Invocation,
    sandbox_id: str,
    options: Options,
    spare: Spare | None = None,
    started: Callable[[], None] | None = None,
    begun: Ahead | None = None,
) -> int:
    """Serve until the end; the exit status. `path`: the socket's, removed at the end. The rest: see become_daemon.

    A configuration with an error is what every Create is then refused with: an engine shows its users the answer to
    that call, and nothing of a process that ends before it.
    """
    config, refusal = configuration.Config(), None
    try:
        config = configuration.load(options.config_path or None)
    except ConfigError as exc:
        refusal = exc
    log = Log("debug" if invocation.debug else config.runtime.log_level)
    daemon = Daemon(config, log, invocation, sandbox_id, path, options.config_path, spare, started, begun)
    daemon.refuse(refusal)
    try:
        daemon.serve(listener)
    finally:
        daemon.close()
    return 0


class Daemon:
    """See the module."""

    def __init__(
        self,
        config: configuration.Config,
        log: Log,
        invocation: Invocation,
        sandbox_id: str,
        path: str,
        config_path: str,
        spare: Spare | None,
        started: Callable[[], None] | None,
        begun: Ahead | None,
    ) -> None:
        self._log = log
        self._path = path
        self._config_path = config_path
        self._started = started
        self._factory = HostFactory(log, spare, begun)
        self._config = config
        self._loop = Loop(on_error=lambda exc: log("error", f"loop: {exc!r}"))
        address = os.environ.get("TTRPC_ADDRESS", "")
        self._publisher = Publisher(address, invocation.namespace, log)
        self._service = TaskService(self._publisher, log, self._end_soon)
        self._sandbox = Sandbox(
            sandbox_id,
            invocation.namespace,
            config,
            self._loop,
            autoremove.Listener(self._service, self._end_soon, log),
            self._factory,
            log,
        )
        self._service.sandbox = self._sandbox
        self._service.on_change = self._look_later
        self._changes = 0
        methods = self._service.methods()
        self._tracing = tracing.TraceService(self._sandbox, config.trace, log)
        self._service.on_started = self._container_started
        self._server = Server(
            self._loop,
            dict.fromkeys(SERVICES, methods) | self._tracing.services(),
            on_error=lambda exc, call: log("error", f"{call}: {exc!r}"),
            executor=_in_thread,
        )

    def _container_started(self, container_id: str) -> None:
        self._tracing.started(container_id)
        if self._started is not None:
            self._started()
        if container_id == self._sandbox.sandbox_id and self._config.runtime.forkserver:
            _in_thread(self._ensure_forkserver)

    def _ensure_forkserver(self) -> None:
        try:
            forkclient.ensure(self._config.factory.pool, self._config_path)
        except (OSError, HakoError) as exc:
            self._log("warn", f"there is no forkserver: {exc}")

    def refuse(self, reason: ConfigError | None) -> None:
        """No container can be created because of this."""
        self._service.refusal = reason

    def serve(self, listener: socket) -> None:
        """Run the loop until somebody stops it."""
        signal.signal(signal.SIGTERM, lambda *_: _in_thread(self._terminate))
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        self._server.listen(listener)
        self._look_later()
        trace.spawned()
        self._loop.run()

    def close(self) -> None:
        """End what is left and tell the engine the last events."""
        self._give_up_address()
        self._sandbox.end()
        self._factory.close()
        self._publisher.close(LAST_EVENTS)
        self._server.close()

    def _give_up_address(self) -> None:
        """Once: the next process of a pod with this name has a socket at the same place."""
        path, self._path = self._path, ""
        if path:
            _unlink(path)

    def _end_soon(self) -> None:
        """Stop once the answers are out; from any thread, before the one to Shutdown itself was given.

        After that answer nobody shall find us: an engine executes `delete` next, which would ask us to end.
        """
        self._give_up_address()

        def plan_end() -> None:
            self._loop.call_later(FLUSH, self._end_when_flushed)

        self._loop.call_threadsafe(plan_end)

    def _end_when_flushed(self) -> None:
        if self._server.unsent:
            self._loop.call_later(FLUSH, self._end_when_flushed)
        elif not self._sandbox.containers:
            self._loop.stop()

    def _look_later(self) -> None:
        """Containers came or went: if nothing more happens, somebody may have forgotten us. From any thread."""

        def plan() -> None:
            self._changes += 1
            change = self._changes
            self._loop.call_later(IDLE, lambda: self._look(change))

        self._loop.call_threadsafe(plan)

    def _look(self, change: int) -> None:
        containers = tuple(self._sandbox.containers.values())
        if change != self._changes:  # somebody else looks later
            return
        if not containers:
            self._loop.stop()
        elif autoremove.abandoned(containers):
            if self._server.connections:
                self._look_later()
            else:
                _in_thread(self._sandbox.abandon)  # they are deleted then, and the process ends with them

    def _terminate(self) -> None:
        self._log("info", "SIGTERM: the pod is ended")
        self._sandbox.end()
        self._loop.stop()


def _in_thread(function: Callable[[], None]) -> None:
    threading.Thread(target=function, name="hako-request", daemon=True).start()


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
