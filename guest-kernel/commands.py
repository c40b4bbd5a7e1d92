"""Runs the tools that a build needs (make, mkfs.erofs, apt-get, dpkg-deb ...): the only place here that spawns.

Knows nothing of kernels and images. Failures come out as BuildError with an argv that can be pasted into a shell.
"""
from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


class BuildError(Exception):
    """Something of the guest could not be built; the message says what, and what to do about it."""


def require(tools: Mapping[str, str]) -> None:
    """BuildError unless each tool (key) is on PATH; the value is the Debian package that has it."""
    absent = {tool: package for tool, package in tools.items() if not shutil.which(tool)}
    if absent:
        names = ", ".join(absent)
        raise BuildError(f"missing tools: {names}; apt-get install {' '.join(sorted(set(absent.values())))}")


def run(argv: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None,
        timeout: float = 600, nice: int = 0, stdin: bytes = b"") -> bytes:
    """Standard output of a command; BuildError with its last lines when it fails or takes over `timeout` seconds."""
    words = [str(word) for word in argv]
    full = ["nice", "-n", str(nice), *words] if nice else words
    try:
        done = subprocess.run(full, cwd=cwd, env={**os.environ, "LC_ALL": "C", **(env or {})}, input=stdin,
                              capture_output=True, timeout=timeout)  # fmt: skip
    except FileNotFoundError as exc:
        raise BuildError(f"{words[0]}: no such command") from exc
    except subprocess.TimeoutExpired as exc:
        raise BuildError(f"took more than {timeout:.0f} s: {shlex.join(words)}") from exc
    if done.returncode:
        raise BuildError(f"exit {done.returncode}: {shlex.join(words)}\n{_tail([done.stderr, done.stdout])}")
    return done.stdout


def _tail(outputs: Iterable[bytes], lines: int = 25) -> str:
    text = b"\n".join(output for output in outputs if output).decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])
