"""The first steps of a pod process: cut off from whoever forked it, then the daemon until its end.

Owns: session, directory, umask and stdio of that process, and that it never returns into the code of the one that forked it.
Must not know: what the daemon does (daemon.py), who forked: bootstrap.py, or the forkserver for it (adoption.py).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import NoReturn

    from shim.sandbox.ahead import Ahead
    from shim.sandbox.spare import Spare
    from shim.task import flags, options


def become_daemon(
    listener: socket,
    path: str,
    invocation: flags.Invocation,
    sandbox_id: str,
    bundle: str,
    given: options.Options,
    spare: Spare | None = None,
    started: Callable[[], None] | None = None,
) -> NoReturn:
    """In a forked child: cut off from the caller's descriptors, then the daemon until it ends. Never returns.

    `spare` is a VM for the pod that is there already; `started` is called when the first container runs.
    """
    status = 1
    try:
        os.setsid()
        os.chdir("/")
        os.umask(0o022)
        _redirect_stdio(bundle)
        begun = _begin(invocation, sandbox_id, bundle, given) if spare is None else None
        from shim.task import daemon

        status = daemon.run(listener, path, invocation, sandbox_id, given, spare, started, begun)
    except BaseException as exc:  # noqa: BLE001 - a forked child must not return into the parent's code
        import traceback

        traceback.print_exception(exc)
    finally:
        os._exit(status)


def _begin(invocation: flags.Invocation, sandbox_id: str, bundle: str, given: options.Options) -> Ahead | None:
    """The pod's machine, before we load what serves the engine's requests."""
    from shim import config as configuration
    from shim.errors import ConfigError
    from shim.log import Log
    from shim.sandbox import ahead

    try:
        config = configuration.load(given.config_path or None)
    except ConfigError:
        return None  # Create will be refused with that
    log = Log("debug" if invocation.debug else config.runtime.log_level)
    return ahead.begin(config, bundle, sandbox_id, invocation.namespace, log)


def _redirect_stdio(bundle: str) -> None:
    """stdin and stdout to /dev/null, stderr to the bundle's log fifo: nothing of the caller's stays open."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        # O_RDWR: no reader is needed now, none is missed when containerd restarts; O_NONBLOCK: a full one
        # is dropped.
        log = os.open(os.path.join(bundle, "log"), os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        log = os.dup(null)
    for source, target in ((null, 0), (null, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
