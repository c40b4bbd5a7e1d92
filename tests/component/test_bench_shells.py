"""The bench's shells with a real busybox (tests/bench/shells.py)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.bench.measure import RunFailed
from tests.bench.shells import Shell

BUSYBOX = shutil.which("busybox")
pytestmark = pytest.mark.skipif(BUSYBOX is None, reason="apt-get install busybox-static")


def test_a_shell_becomes_that_of_another_program(tmp_path: Path) -> None:
    """Its applets come from there, too; before and after it answers what it is asked."""
    assert BUSYBOX is not None
    other = shutil.copy(BUSYBOX, tmp_path / "busybox")
    with subprocess.Popen([BUSYBOX, "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        shell = Shell(child.stdout.fileno(), child.stdin.fileno())
        own = f"test $(readlink -f /proc/$$/exe) = {other} && test $(readlink -f /proc/self/exe) = {other}"
        with pytest.raises(RunFailed):
            shell.run(own)
        shell.become(str(other))
        assert shell.run(own) > 0
        with pytest.raises(RunFailed):
            shell.run("false")
        child.kill()
