"""Which files of the virtual environment hako needs at run time.

Owns: the closure of the distribution `hako`'s dependencies, by their own metadata. Copying these files,
instead of running pip once more, needs no network and gives the versions that the tests ran with. Called by
install/prefix.py.
"""

from __future__ import annotations

import os
import re
import shutil
from importlib import metadata

from shim.errors import HakoError


def closure(root: str = "hako") -> list[metadata.Distribution]:
    """The distributions that `root` needs, without itself and its extras, sorted by name."""
    found: dict[str, metadata.Distribution] = {}
    todo = [root]
    while todo:
        for line in metadata.distribution(todo.pop()).requires or []:
            name, marker = _requirement(line)
            if name in found or "extra" in marker:
                continue
            try:
                found[name] = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                if marker:  # for another platform
                    continue
                raise HakoError(f"the environment lacks {name}", hint="make setup") from None
            todo.append(name)
    return [found[name] for name in sorted(found)]


def copy(target: str) -> list[str]:
    """Copy the closure into the directory `target`; returns what was copied as `name version`."""
    distributions = closure()
    for distribution in distributions:
        for file in distribution.files or []:
            if file.parts[0] != ".." and "__pycache__" not in file.parts:
                destination = os.path.join(target, *file.parts)
                os.makedirs(os.path.dirname(destination), exist_ok=True)
                shutil.copyfile(str(file.locate()), destination)
    return [f"{distribution.metadata['Name']} {distribution.version}" for distribution in distributions]


def _requirement(line: str) -> tuple[str, str]:
    """`cffi>=1.16,<3 ; python_version > "3"` as (normalized name, marker)."""
    requirement, _, marker = line.partition(";")
    match = re.match(r"\s*([A-Za-z0-9._-]+)", requirement)
    if match is None:
        raise ValueError(f"not a requirement: {line!r}")
    return re.sub(r"[-_.]+", "-", match[1]).lower(), marker.strip()
