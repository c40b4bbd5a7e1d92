"""The command line of a containerd shim, in the style of Go's flag package.

Owns: which flags exist and how they are written (-x v, -x=v, --x v; the action is the first word that is no
flag). Must not know: what an action does. Called by bootstrap.py. No imports: it is on the path of `start`
and `delete`.
"""

from __future__ import annotations

VALUES = {"namespace", "address", "publish-binary", "id", "bundle", "socket"}
SWITCHES = {"debug", "v", "version", "info"}
FALSE = {"0", "f", "F", "false", "FALSE", "False"}


class UsageError(Exception):
    """The command line is not one that containerd or CRI-O would write."""


class Invocation:
    """One call of the shim binary: the flags as given ("" if not) and the `action` ("" if none)."""

    def __init__(self) -> None:
        self.namespace = self.address = self.publish_binary = self.id = self.bundle = self.socket = ""
        self.debug = self.info = self.v = False
        self.action = ""


def parse(arguments: list[str]) -> Invocation:
    """The arguments after the program's name. Raises UsageError on a flag that does not exist."""
    found = Invocation()
    at = 0
    while at < len(arguments):
        word = arguments[at]
        at += 1
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            found.action = word
            break
        name, equals, value = word.lstrip("-").partition("=")
        if name in SWITCHES:
            setattr(found, "v" if name == "version" else name, not equals or value not in FALSE)
        elif name in VALUES:
            if not equals:
                if at == len(arguments):
                    raise UsageError(f"flag needs an argument: -{name}")
                value, at = arguments[at], at + 1
            setattr(found, name.replace("-", "_"), value)
        else:
            raise UsageError(f"flag provided but not defined: -{name}")
    return found
