"""`hako run`'s options, read and checked, before anything is done.

Owns: the table of options and what they may be. Must not know: images, specs, VMs. Called by run.py.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from shim.cli import terminal, values
from shim.cli.options import MANY, Option, UsageError
from shim.cli.values import Volume

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.cli.options import Parsed

OPTIONS = [
    Option("-i --interactive", "", "hand our standard input over"),
    Option("-t --tty", "", "give the command a terminal"),
    Option("-d --detach", "", "print the container's id and do not wait"),
    Option("--rm", "", "remove the container when it has ended"),
    Option("--name", "NAME", "a name for it; its id by default"),
    Option("-e --env", "KEY=VALUE", "set a variable; KEY alone passes ours", MANY),
    Option("--env-file", "FILE", "variables, one per line", MANY),
    Option("-v --volume", "SRC:DST[:ro]", "a host directory or file in the container", MANY),
    Option("-w --workdir", "DIR", "working directory in the container"),
    Option("-u --user", "USER[:GROUP]", "names of the image or numbers"),
    Option("--entrypoint", "PROGRAM", 'instead of the image\'s; "" for none'),
    Option("-h --hostname", "NAME", "the container's hostname; its id by default"),
    Option("--read-only", "", "the root filesystem cannot be written to"),
    Option("--cpus", "N", "at most N processors, such as 1.5"),
    Option("-m --memory", "SIZE", "at most this much memory, such as 512m"),
    Option("--cap-add", "CAP", "a capability more, or ALL", MANY),
    Option("--cap-drop", "CAP", "a capability less, or ALL", MANY),
    Option("--security-opt", "OPTION", "seccomp=FILE, seccomp=unconfined, no-new-privileges", MANY),
    Option("--network --net", "NET", "nat (the default), none, netns:PATH"),
    Option("--annotation", "KEY=VALUE", "into the container's specification", MANY),
    Option("--rootfs", "DIR", "run in this directory as it is, instead of an IMAGE"),
]


class Wishes(NamedTuple):
    """What the user asked for. Host paths are absolute; memory in bytes; "" and 0 mean nothing was said."""

    image: str
    rootfs: str
    command: list[str]
    name: str
    hostname: str
    interactive: bool
    terminal: bool
    detach: bool
    remove: bool
    env: list[str]
    volumes: list[Volume]
    workdir: str
    user: str
    entrypoint: list[str] | None
    read_only: bool
    cpus: float
    memory: int
    cap_add: list[str]
    cap_drop: list[str]
    seccomp: str
    no_new_privileges: bool
    network: str
    netns: str
    annotations: dict[str, str]


def read(parsed: Parsed) -> Wishes:
    """The options as wishes. Raises UsageError."""
    words = list(parsed.words)
    rootfs = _rootfs(parsed)
    if not rootfs and not words:
        raise UsageError("name an image")
    image = "" if rootfs else words.pop(0)
    _check_attachment(parsed)
    seccomp, no_new_privileges = values.security(parsed.many("--security-opt"))
    network, netns = values.network(parsed.text("--network", "nat"))
    return Wishes(
        image=image,
        rootfs=rootfs,
        command=words,
        name=values.name(parsed.text("--name")) if parsed.given("--name") else "",
        hostname=values.name(parsed.text("--hostname")) if parsed.given("--hostname") else "",
        interactive=parsed.flag("--interactive"),
        terminal=parsed.flag("--tty"),
        detach=parsed.flag("--detach"),
        remove=parsed.flag("--rm"),
        env=values.environment(parsed.many("--env-file"), parsed.many("--env"), os.environ),
        volumes=[values.volume(text, os.getcwd()) for text in parsed.many("--volume")],
        workdir=_workdir(parsed.text("--workdir")),
        user=parsed.text("--user"),
        entrypoint=_entrypoint(parsed),
        read_only=parsed.flag("--read-only"),
        cpus=values.cpus(parsed.text("--cpus")) if parsed.given("--cpus") else 0.0,
        memory=values.memory(parsed.text("--memory")) if parsed.given("--memory") else 0,
        cap_add=parsed.many("--cap-add"),
        cap_drop=parsed.many("--cap-drop"),
        seccomp=seccomp,
        no_new_privileges=no_new_privileges,
        network=network,
        netns=netns,
        annotations=dict(map(values.annotation, parsed.many("--annotation"))),
    )


def _rootfs(parsed: Parsed) -> str:
    if not parsed.given("--rootfs"):
        return ""
    path = os.path.abspath(parsed.text("--rootfs"))
    if not os.path.isdir(path):
        raise UsageError(f"--rootfs {path}: there is no such directory")
    return os.path.realpath(path)


def _check_attachment(parsed: Parsed) -> None:
    if not parsed.flag("--detach"):
        terminal.require(parsed)


def _workdir(text: str) -> str:
    if text and not text.startswith("/"):
        raise UsageError(f"--workdir {text}: the path in the container must be absolute")
    return text


def _entrypoint(parsed: Parsed) -> list[str] | None:
    if not parsed.given("--entrypoint"):
        return None
    text = parsed.text("--entrypoint")
    return [text] if text else []
