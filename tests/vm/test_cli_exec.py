"""`hako exec`, and what depends on a container that runs: one container for all tests here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from tests.framework.hako import Hako
from tests.framework.screen import Screen

pytestmark = [
    pytest.mark.vm,
    pytest.mark.pods,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test"),
]
NONE = ("--network", "none")


@pytest.fixture(scope="module")
def web(hako: Hako) -> Iterator[str]:
    """A container that runs in the background; its name."""
    hako.detached("--name", "web", "-e", "OWN=1", hako.image, "sh", "-c", "echo started; exec sleep 600")
    yield "web"
    hako.run("rm", "-f", "web", check=True)


def _wait_for(what: str, condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)


def test_exec(hako: Hako, web: str) -> None:
    """One more process has its own status, input, variables, directory and user, and the container's
    variables.
    """
    assert hako.run("exec", web, "sh", "-c", "exit 5").returncode == 5
    assert hako.run("exec", "-i", web, "cat", input="in\n").stdout == "in\n"
    script = "echo $OWN $MORE; pwd; id -u"
    done = hako.run("exec", "-e", "MORE=2", "-w", "/var", "-u", "daemon", web, "sh", "-c", script)
    assert done.stdout == "1 2\n/var\n1\n"
    missing = hako.run("exec", web, "nosuch")
    assert missing.returncode == 127 and "not found" in missing.stderr
    hako.run("exec", "-d", web, "touch", "/detached", check=True)
    _wait_for("the file", lambda: hako.run("exec", web, "test", "-e", "/detached").returncode == 0)


def test_exec_on_a_terminal(hako: Hako, web: str) -> None:
    """exec -it has a terminal of our size; Ctrl-D ends its shell, and the container goes on."""
    screen = Screen(hako.argv("exec", "-it", web, "sh"), env=hako.environment)
    screen.wait_for(b"# ")
    screen.type(b"stty size; (exit 4)\r")
    screen.wait_for(b"\n24 80")
    screen.wait_for(b"# ")
    screen.type(b"\x04")
    assert screen.ended() == 4
    assert hako.state_of(web)["status"] == "running"


def test_names_are_unique(hako: Hako, web: str) -> None:
    """A name in use is refused before anything is made."""
    done = hako.run("run", *NONE, "--name", web, hako.image, "true")
    assert done.returncode == 125 and "the name web is in use" in done.stderr
    assert [item["name"] for item in [hako.state_of(web)]] == [web]
