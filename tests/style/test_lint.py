"""The linters as tests: a checkout that passes `make test` passes them too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.framework.importgraph import REPOSITORY


def _tool(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not in this environment; `make test` installs it")
    return str(path)


def _run(argv: list[str], seconds: float) -> None:
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}{done.stderr}"


def test_ruff() -> None:
    """ruff finds nothing with the rules of pyproject.toml."""
    _run([_tool("ruff"), "check", "--no-cache", "."], 60)


@pytest.mark.timeout(400)
def test_mypy_strict() -> None:
    """mypy --strict passes on shim, agent, tests and guest-kernel."""
    _run([_tool("mypy")], 380)


@pytest.mark.timeout(400)
def test_mypy_strict_for_debian_13() -> None:
    """The same code is typed for Python 3.13, which Debian 13 has."""
    _run([_tool("mypy"), "--python-version", "3.13", "shim", "agent"], 380)
