"""Fixtures of tests that boot a VM: `booted` is a guest whose agent answers, with share and vsock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.framework import vm


@pytest.fixture(scope="session")
def guest_files() -> None:
    """Skip, saying what to do, where there is no guest to boot."""
    reason = vm.missing()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def booted(guest_files: None) -> Iterator[vm.Booted]:
    """A guest of the test's own, just booted; nothing of it is left afterwards."""
    with vm.Booted() as guest:
        yield guest
