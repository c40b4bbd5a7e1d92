"""Fixtures of several component tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from agent.container.container import Container
from agent.linux.loop import Loop
from tests.framework import box


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A running loop; a callback that raises fails the test."""
    failures: list[Exception] = []
    loop = Loop(on_error=failures.append)
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield loop
    loop.stop()
    thread.join(5)
    assert not failures


@pytest.fixture(params=[Container, box.StandsBy], ids=["forked", "stood-by"])
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """The containers' first processes are forked for them; once more: they have stood by."""
    box.Guest.kind = request.param
    yield
    box.Guest.kind = Container
