"""Fixtures of several component tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from agent.linux.loop import Loop


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
