"""hako factory: what it prints, and which words it takes."""

from __future__ import annotations

from typing import Any

import pytest

from shim.cli import factory
from shim.cli.options import Parsed, UsageError

ROW: dict[str, Any] = {
    "key": "abc", "state": "in use", "vcpus": 1, "memory_mib": 256, "accelerator": "tcg", "bytes": 40 << 20,
    "made": 0, "used": 0,
}  # fmt: skip


def test_status_says_what_the_next_pod_does() -> None:
    """It starts from the template, or boots and why."""
    there = factory.as_text({"wanted": "abc", "reason": "", "plugged": "", "templates": [ROW]})
    assert there.splitlines()[0].split() == ["TEMPLATE", "STATE", "VCPUS", "MEMORY", "CPU", "SIZE", "LAST", "USED"]
    assert "abc       in use  1      256 MiB  tcg  40 MiB" in there
    assert there.endswith("The next pod starts from template abc.\n")
    plugged = factory.as_text({"wanted": "abc", "reason": "", "plugged": "QEMU 7.2 cannot", "templates": [ROW]})
    assert plugged.endswith("The next pod starts from template abc; its share is plugged: QEMU 7.2 cannot.\n")
    other = factory.as_text({"wanted": "def", "reason": "", "templates": [ROW | {"state": "stale"}]})
    assert other.endswith("The next pod boots: there is no template def yet.\n")
    none = factory.as_text({"wanted": "", "reason": "a microvm has no hot-plug", "templates": []})
    assert none == "The next pod boots: a microvm has no hot-plug.\n"


def test_status_says_what_waits() -> None:
    """Each pool on a line, and how one comes to be where there is none."""
    pool = {"size": 2, "ready": [5], "making": [7], "reason": "", "hits": 3, "misses": 1}
    told = factory.pools_as_text({"pool": 2, "pools": [pool, pool | {"making": [], "ready": [], "reason": "memory is short"}]})
    assert told.splitlines() == [
        "Pool: 1 of 2 VMs wait, 1 being made; 3 pods got one, 1 did not.",
        "Pool: 0 of 2 VMs wait (memory is short); 3 pods got one, 1 did not.",
    ]
    assert factory.pools_as_text({"pool": 2, "pools": []}).endswith("are made with the first pod, or by hako factory init.\n")
    assert factory.pools_as_text({"pool": 0, "pools": []}) == ""


@pytest.mark.parametrize("words", [[], ["make"], ["init", "status"]])
def test_other_words_are_refused(words: list[str]) -> None:
    """With the three that there are."""
    parsed = Parsed()
    parsed.words = words
    with pytest.raises(UsageError, match="init, status or destroy"):
        factory.main(parsed)
