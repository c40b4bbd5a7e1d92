"""Kernel modules that a sandbox asks for by name, where the guest's image has any.

Owns the search in /lib/modules. Called by agent.sandbox; loading itself is agent.init's. hako's own kernel
has no modules: what is built in is there already, anything else is refused.
"""

from __future__ import annotations

import errno
import os

from agent import init
from agent.errors import StepError, step_error

DIRECTORY = "/lib/modules"


def load(name: str, parameters: str, directory: str = DIRECTORY) -> None:
    """Load a module after those it needs; fine if it is there already. Raises StepError."""
    if os.path.isdir("/sys/module/" + name.replace("-", "_")):
        return
    here = f"{directory}/{os.uname().release}"
    for path in _in_order(name, here):
        try:
            init.load_module(f"{here}/{path}", parameters if _name(path) == _plain(name) else "")
        except OSError as error:
            raise step_error("load kernel module", error) from error


def _in_order(name: str, here: str) -> list[str]:
    """Files to load, the wanted one last, by depmod's modules.dep: "FILE: NEEDED NEEDED-BY-NEEDED ..."."""
    try:
        with open(f"{here}/modules.dep", encoding="utf-8") as file:
            for line in file:
                path, _colon, needed = line.partition(":")
                if _name(path) == _plain(name):
                    return [*reversed(needed.split()), path]
    except FileNotFoundError:
        pass
    raise StepError("load kernel module", errno.ENOENT, name, "the guest's kernel does not have it")


def _name(path: str) -> str:
    return _plain(path.rpartition("/")[2].partition(".")[0])


def _plain(name: str) -> str:
    return name.replace("-", "_")
