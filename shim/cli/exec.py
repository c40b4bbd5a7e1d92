"""`hako exec`: one more process in a running container."""

from __future__ import annotations

import os

from shim.byhand import registry
from shim.cli import ending, exitstatus, terminal, values
from shim.cli.fifos import Fifos
from shim.cli.options import MANY, Option, UsageError
from shim.cli.podlog import PodLog
from shim.cli.task import Gone
from shim.errors import HakoError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.byhand.registry import Container
    from shim.cli.options import Parsed
    from shim.cli.task import Task

USAGE = "exec [-it] [-d] [-e KEY=VALUE] [-w DIR] [-u USER] CONTAINER COMMAND [ARGUMENT...]"
OPTIONS_END_AT_FIRST_WORD = True
OPTIONS = [
    Option("-i --interactive", "", "hand our standard input over"),
    Option("-t --tty", "", "give it a terminal"),
    Option("-d --detach", "", "do not wait for its end"),
    Option("-e --env", "KEY=VALUE", "set a variable; KEY alone passes ours", MANY),
    Option("--env-file", "FILE", "variables, one per line", MANY),
    Option("-w --workdir", "DIR", "working directory in the container"),
    Option("-u --user", "USER[:GROUP]", "names of the container or numbers"),
]


def main(parsed: Parsed) -> int:
    """Run it; its exit status."""
    if len(parsed.words) < 2:
        raise UsageError("name a container and a command")
    container = registry.find(parsed.words[0])
    if parsed.flag("--detach") and (parsed.flag("--interactive") or parsed.flag("--tty")):
        raise UsageError("-d cannot be attached to: leave out -i and -t")
    terminal.require(parsed)
    task = ending.connect(container)
    try:
        return _run(parsed, container, task)
    finally:
        task.close()


def _run(parsed: Parsed, container: Container, task: Task) -> int:
    import json

    exec_id = os.urandom(8).hex()
    process = json.dumps(spec(parsed, _config(container))).encode()
    if parsed.flag("--detach"):
        _announce(container, task, exec_id, process, ("", "", ""), is_terminal=False)
        _start(task, exec_id)
        return 0
    is_terminal, interactive = parsed.flag("--tty"), parsed.flag("--interactive")
    fifos = Fifos(container.directory, f"exec-{exec_id}-", stdin=interactive, terminal=is_terminal)
    log = PodLog(container)
    try:
        _announce(container, task, exec_id, process, fifos.paths(), is_terminal=is_terminal)
        status = _attached(task, exec_id, fifos, interactive=interactive, is_terminal=is_terminal)
        ending.explain(log, container, status)
        return status
    except Gone as exc:
        raise ending.lost(container) from exc
    finally:
        fifos.close()
        log.close()


def _announce(
    container: Container, task: Task, exec_id: str, process: bytes, stdio: tuple[str, str, str], *, is_terminal: bool
) -> None:
    try:
        task.exec(exec_id, process, stdio, terminal=is_terminal)
    except NotFound as exc:  # it has ended since we connected
        raise ending.not_running(container) from exc


def _attached(task: Task, exec_id: str, fifos: Fifos, *, interactive: bool, is_terminal: bool) -> int:
    from shim.cli.session import Session

    session = Session(task, fifos, exec_id, interactive=interactive, is_terminal=is_terminal)
    try:
        session.prepare()
        _start(task, exec_id)
        outcome = session.run()
    finally:
        session.close()
    if outcome.status is None:
        return exitstatus.LEFT[outcome.reason]
    try:
        task.delete(exec_id)
    except (NotFound, Gone):  # its container has ended meanwhile, and with it everything
        pass
    return outcome.status


def _start(task: Task, exec_id: str) -> None:
    try:
        task.start(exec_id)
    except HakoError as exc:
        raise exitstatus.of_start(exc) from exc


def _config(container: Container) -> dict[str, Any]:
    found = registry.read_json(container.file("config.json"))
    if found is None:
        raise HakoError("its config.json cannot be read", object=container.name)
    return found


def spec(parsed: Parsed, config: dict[str, Any]) -> dict[str, Any]:
    """The OCI process: the container's own with what was asked for in its place."""
    process: dict[str, Any] = dict(config["process"])
    process["args"] = parsed.words[1:]
    process["terminal"] = parsed.flag("--tty")
    process["env"] = _environment(parsed, process.get("env", []))
    process.pop("consoleSize", None)
    if parsed.given("--workdir"):
        process["cwd"] = parsed.text("--workdir")
    if parsed.given("--user"):
        _set_user(process, config["root"]["path"], parsed.text("--user"))
    return process


def _environment(parsed: Parsed, own: list[str]) -> list[str]:
    added = values.environment(parsed.many("--env-file"), parsed.many("--env"), os.environ)
    merged = dict(variable.partition("=")[::2] for variable in [*own, *added])
    if parsed.flag("--tty"):
        merged.setdefault("TERM", "xterm")
    return [f"{key}={value}" for key, value in merged.items()]


def _set_user(process: dict[str, Any], rootfs: str, text: str) -> None:
    from shim import runspec

    runspec.set_user(process, rootfs, text)
