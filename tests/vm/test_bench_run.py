"""`make bench`, as little of it as is a whole run: floors on one stack, the shims' `start`, the files that it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from tests.framework import vm
from tests.framework.containerd import ROOT

DEADLINE = 240


@pytest.mark.timeout(DEADLINE + 30)
@pytest.mark.skipif(bool(vm.missing()), reason=vm.missing())
def test_a_run_of_the_bench_writes_what_it_measured(tmp_path: Path) -> None:
    """Floors of the distribution's own stack, a row with its verdict, a plot; and nothing fails."""
    argv = [
        sys.executable, "-m", "tests.bench", "--rounds", "1", "--only", "^(floors|start)$", "--stack", "Debian",
        "--out", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(argv, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert not told["failed"]
    (stack,) = told["stacks"]
    floors = {f"F_{name} [{stack}]" for name in ("boot", "restore", "ping", "fork")}
    assert floors | {"F_fork on the host", "start command, hako", "start command, runc"} == set(told["samples"])
    assert all(sample["wall"] > 0 and sample["cpu"] > 0 for taken in told["samples"].values() for sample in taken)
    (row,) = (row for row in told["sections"]["Starts"] if row["name"].startswith("`containerd-shim-hako-v2 start`"))
    assert row["values"][""]["value"] > 0 and row["judged"] == ""
    assert "| F_restore over F_boot |" in done.stdout
    (plot,) = tmp_path.glob("*.svg")
    assert xml.fromstring(plot.read_text()).tag.endswith("svg")
