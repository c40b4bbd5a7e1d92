"""Fixtures of tests that boot a VM: `booted` is a guest whose agent answers, with share and vsock; `engine` a containerd.

Tests of `engine` run on the machine's containerd, those marked every_containerd on a containerd 2 too;
`--containerd=all` runs each on both.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.framework import containerd, vm
from tests.framework.containerd import Containerd
from tests.framework.hako import Hako, installation

RELEASES = ("containerd", "containerd2")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The releases of containerd on which a test runs."""
    if "engine" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--containerd")
        every = metafunc.definition.get_closest_marker("every_containerd") is not None
        releases = {"some": RELEASES if every else RELEASES[:1], "all": RELEASES, "1": RELEASES[:1], "2": RELEASES[1:]}[chosen]
        metafunc.parametrize("engine", releases, indirect=True, scope="module")


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[Containerd]:
    """One containerd for the tests of a module, with the test image; nothing may be left of its pods."""
    programs = containerd.second() if request.param == "containerd2" else ""
    if programs is None:
        pytest.skip("no containerd 2: python -m shim.tools --ensure containerd2")
    with containerd.short_directory() as directory, Containerd(directory, containerd.guest_config(directory), programs) as engine:
        engine.import_busybox()
        yield engine
        engine.remove_everything()
        engine.assert_nothing_left()


@pytest.fixture(scope="module")
def hako() -> Iterator[Hako]:
    """One user of hako for all tests of a module."""
    with installation() as hako:
        yield hako


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
