"""The `hako` command: one verb, one module. Owns the list of verbs; imports none of them."""

from __future__ import annotations

# verb -> (module, line in `hako --help`). A module has USAGE, OPTIONS, OPTIONS_END_AT_FIRST_WORD and
# main(parsed) -> int.
VERBS = {
    "run": ("shim.cli.run", "run a command in a new container in its own microVM"),
    "exec": ("shim.cli.exec", "run a command in a running container"),
    "list": ("shim.cli.list", "list containers (also: ps)"),
    "logs": ("shim.cli.logs", "show what a container has printed"),
    "stop": ("shim.cli.stop", "stop containers: SIGTERM, then SIGKILL"),
    "kill": ("shim.cli.kill", "send a signal to containers"),
    "rm": ("shim.cli.rm", "remove stopped containers"),
    "trace": ("shim.cli.trace", "show where the time of a start went"),
    "check": ("shim.cli.check", "is this host ready? each finding with its remedy"),
    "factory": ("shim.cli.factory", "templates from which pods start: init, status, destroy"),
    "config": ("shim.cli.config", "print the effective configuration"),
    "version": ("shim.cli.version", "print versions"),
}
ALIASES = {"ps": "list"}
