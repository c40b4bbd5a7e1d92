"""runsc, gVisor's runtime, built from Go's module proxy: `python -m tests.bench.gvisor`.

Owns: which version, where it is kept (cache/tools/runsc). Debian has no package of it. Its `go` branch, which the go command can
build, is on the proxy at some commits only; what it requires is taken over as it stands, with its checksums.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from shim import paths

MODULE, VERSION = "gvisor.dev/gvisor", "v0.0.0-20260905035102-160fafc42237"
TIMEOUT = 1200.0


def find() -> str | None:
    """Path of runsc: on PATH, or built before."""
    built = program()
    return shutil.which("runsc") or (str(built) if os.access(built, os.X_OK) else None)


def program() -> Path:
    """Where it is built to."""
    return Path(paths.cache_dir("tools")) / "runsc" / VERSION / "runsc"


def build() -> Path:
    """Build it unless it is there. Raises CalledProcessError; FileNotFoundError without Go."""
    target = program()
    if not os.access(target, os.X_OK):
        with tempfile.TemporaryDirectory(prefix="hako-runsc-") as directory:
            made = _built(Path(directory))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made, target.with_suffix(".new"))
            target.with_suffix(".new").rename(target)
    return target


def _built(directory: Path) -> Path:
    """In a module of our own: what gVisor's go.mod says, and gVisor itself."""
    told = _go(directory, "mod", "download", "-json", f"{MODULE}@{VERSION}")
    source = Path(json.loads(told)["Dir"])
    _, _, requirements = (source / "go.mod").read_text().partition("\n")
    (directory / "go.mod").write_text(f"module hako.invalid/runsc\n{requirements}\nrequire {MODULE} {VERSION}\n")
    shutil.copy(source / "go.sum", directory)
    _go(directory, "build", "-mod=mod", "-ldflags=-s -w", "-o", "runsc", f"{MODULE}/runsc")
    return directory / "runsc"


def _go(directory: Path, *words: str) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0"}
    return subprocess.run(
        ["go", *words], cwd=directory, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT
    ).stdout


if __name__ == "__main__":
    try:
        print(build())
    except (OSError, subprocess.SubprocessError) as exc:
        print(f"runsc: {exc}", file=sys.stderr)
        sys.exit(1)
