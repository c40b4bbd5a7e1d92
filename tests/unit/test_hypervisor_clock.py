"""The counter's speed, and a guest's rest by two clocks."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import start
from shim.hypervisor import clock


def test_the_counter_is_measured_twice_alike() -> None:
    """Two measurements round to the same, or to neighbours."""
    first, second = clock._measured(), clock._measured()
    assert first % clock.STEP_KHZ == 0
    assert first > 500_000
    assert abs(first - second) <= clock.STEP_KHZ


def test_it_is_measured_once_a_boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A later process reads the answer."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(clock, "_measured", lambda: 2_100_000)
    clock.counter_khz.cache_clear()
    assert clock.counter_khz() == 2_100_000
    monkeypatch.setattr(clock, "_measured", lambda: pytest.fail("measured again"))
    clock.counter_khz.cache_clear()
    assert clock.counter_khz() == 2_100_000
    clock.counter_khz.cache_clear()


def test_where_it_cannot_be_measured_nothing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host that executes no memory of ours: the guest finds out by itself."""
    monkeypatch.setattr("mmap.mmap", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert clock._measured() == 0


@pytest.mark.parametrize(
    ("slept", "wrong"), [(2.4, False), (2.6, False), (4.0, False), (0.9, True), (1.9, True), (5.5, True)]
)
def test_a_rest_is_as_long_as_it_was_said_to_be(monkeypatch: pytest.MonkeyPatch, slept: float, wrong: bool) -> None:
    """What a busy host adds is forgiven; a clock that is too fast or half as fast is not."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    rest = clock.Rest()
    rest.begins("[    1.5] something else")
    rest.begins((start.REST % 2500).decode().strip())
    now[0] += slept
    rest.ends()
    assert bool(rest.refusal()) is wrong


def test_a_guest_that_says_nothing_of_rest_is_not_judged() -> None:
    """As one that is not to be saved."""
    rest = clock.Rest()
    rest.begins(f"{clock.REST}long")
    rest.ends()
    assert rest.refusal() == ""
    assert start.REST.startswith(clock.REST.encode())
