"""Options of the tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """--containerd: which releases of it the end-to-end tests use."""
    parser.addoption(
        "--containerd", choices=["some", "all", "1", "2"], default="some",
        help="some: the machine's, and a representative part on containerd 2 too; all: every test on both; 1, 2: only that one",
    )  # fmt: skip
