"""`hako trace` on a real start: every part is there, on both clocks, and little is unexplained."""

from __future__ import annotations

import json

import pytest

from tests.framework.hako import Hako

pytestmark = [pytest.mark.vm, pytest.mark.pods, pytest.mark.timeout(200)]


def test_a_start_is_explained(hako: Hako) -> None:
    """At least 95 % of the time from the execution of `start` to the answer to Start; the guest's part in it."""
    hako.detached("--name", "traced", hako.image, "sleep", "600")
    text = hako.run("trace", "traced", check=True).stdout
    assert float(text.splitlines()[-1].split(" %")[0]) >= 95
    for step in ("spawn", "Create ", "virtiofsd", "create", "guest: CreateContainer", "guest: StartContainer", "start"):
        assert any(line.strip().startswith(step) for line in text.splitlines()), f"no {step} in\n{text}"
    spans = json.loads(hako.run("trace", "--json", "traced", check=True).stdout)
    guest = [span for span in spans if span["kind"] == "guest" and span["name"] == "CreateContainer"]
    create = next(span for span in spans if span["name"] == "create")
    assert len(guest) == 1
    # The clocks are matched to within a round trip.
    slack = 50_000_000
    assert create["begin"] - slack <= guest[0]["begin"] <= guest[0]["end"] <= create["end"] + slack
    hako.run("rm", "-f", "traced", check=True)
    done = hako.run("trace", "traced")
    assert done.returncode == 125 and "traced" in done.stderr
    hako.assert_nothing_left()
