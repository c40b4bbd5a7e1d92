"""Reads kernel configuration fragments: what is asked for, for which kernel version, and why.

Owns the form of `fragments/*.config`. Knows no compiler and no kernel tree: text in, data out. Called by kernel.py.

A line is `CONFIG_NAME=value [if >=X.Y | if <X.Y]  # reason`; a line that starts with `#` is prose.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

Version = tuple[int, int]

_LINE = re.compile(
    r"(?P<name>CONFIG_[A-Za-z0-9_]+)=(?P<value>y|n|\d+|\"[^\"]*\")"
    r"(?: if (?P<relation><|>=)(?P<major>\d+)\.(?P<minor>\d+))?"
    r"  # (?P<reason>\S.*)"
)


class FragmentError(ValueError):
    """A fragment that cannot be read, or that contradicts another; the message names file and line."""


@dataclass(frozen=True)
class Option:
    """One line of a fragment; `value` is as in a .config file (`y`, `n`, a number, a quoted string)."""

    name: str
    value: str
    reason: str
    relation: str
    version: Version
    where: str

    def applies_to(self, version: Version) -> bool:
        """Whether the option is asked for in a kernel of this version (major, minor)."""
        if not self.relation:
            return True
        return version < self.version if self.relation == "<" else version >= self.version


def parse(text: str, where: str) -> list[Option]:
    """The options of one fragment; FragmentError names `where` and the line that has no value or no reason."""
    options = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if not found:
            raise FragmentError(f"{where}:{number}: not `CONFIG_NAME=value [if >=X.Y]  # reason`: {line}")
        version = (int(found["major"] or 0), int(found["minor"] or 0))
        options.append(Option(found["name"], found["value"], found["reason"], found["relation"] or "", version,
                              f"{where}:{number}"))  # fmt: skip
    return options


def read(directory: Path) -> list[Option]:
    """The options of all `*.config` files of a directory, in the order of their names."""
    return [option for path in sorted(directory.glob("*.config")) for option in parse(path.read_text(), path.name)]


def select(options: Iterable[Option], version: Version) -> dict[str, str]:
    """Name to value for one kernel version; FragmentError when an option is asked for twice."""
    chosen: dict[str, Option] = {}
    for option in options:
        if not option.applies_to(version):
            continue
        if option.name in chosen:
            raise FragmentError(f"{option.where}: {option.name} was already asked for in {chosen[option.name].where}")
        chosen[option.name] = option
    return {name: option.value for name, option in chosen.items()}


def render(asked: Mapping[str, str]) -> str:
    """The options in the form of a .config file."""
    return "".join(f"# {name} is not set\n" if value == "n" else f"{name}={value}\n" for name, value in asked.items())


def missing(asked: Mapping[str, str], config: str) -> list[str]:
    """What was asked for and is otherwise in the text of a finished .config, as `NAME=asked (is actual)`."""
    actual = dict(line.split("=", 1) for line in config.splitlines() if line.startswith("CONFIG_"))
    return [f"{name}={value} (is {actual.get(name, 'n')})" for name, value in asked.items()
            if actual.get(name, "n") != value]  # fmt: skip
