"""What a real interpreter loads, told by `python -X importtime` in a process of its own.

Owns: running it as the launchers do (-I -S, paths baked in) and reading its report. Used by tests/style and
by VM tests that look at a whole `hako exec`.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence

from tests.framework.importgraph import REPOSITORY

INTERPRETER = "/usr/bin/python3"
SITE = sysconfig.get_path("platlib")


def modules(report: str) -> set[str]:
    """The modules named in an importtime report."""
    lines = [line for line in report.splitlines() if line.startswith("import time:") and "|" in line]
    return {line.rpartition("|")[2].strip() for line in lines} - {"imported package"}


def loaded_by(
    code: str, argv: Sequence[str] = (), env: Mapping[str, str] | None = None, cwd: str = "/"
) -> set[str]:
    """The modules that an interpreter with our paths has loaded after `code`. Raises if it fails."""
    text = f"import sys; sys.path += [{str(REPOSITORY)!r}, {SITE!r}]\n{code}"
    done = subprocess.run(
        [INTERPRETER, "-IS", "-X", "importtime", "-c", text, *argv],
        env={"PATH": os.environ["PATH"], **(env or {})},
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        errors="replace",  # `delete` answers in protobuf
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr[-2000:]}"
    return modules(done.stderr)
