"""Verbs that take several containers: each is tried and each failure told; one failure is the status 1."""

from __future__ import annotations

import sys

from shim.byhand import registry
from shim.cli.options import UsageError
from shim.errors import HakoError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shim.byhand.registry import Container


def each(references: Sequence[str], act: Callable[[Container], None]) -> int:
    """Do it to each and print its reference; 1 if one of them failed."""
    if not references:
        raise UsageError("name at least one container")
    failed = 0
    for reference in references:
        try:
            act(registry.find(reference))
            print(reference, flush=True)
        except HakoError as exc:
            print(f"hako: {exc}", file=sys.stderr)
            failed = 1
    return failed
