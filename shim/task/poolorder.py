"""The shim binary's word for the pool: `-id status`, `-id fill` or `-id end`, as `hako factory` uses it.

Owns: to whom the order goes, and the JSON on stdout. Must not know: what a pool is (pool.py). Called by bootstrap.py.
"""

from __future__ import annotations

import json

from shim import config as configuration
from shim.errors import HakoError
from shim.task import forkclient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.task.flags import Invocation

ORDERS = ("status", "fill", "end")


def main(invocation: Invocation) -> bytes:
    """A JSON list with the state of each forkserver's pool. Raises HakoError."""
    if invocation.id not in ORDERS:
        raise HakoError(f"no such order: {invocation.id}", hint=", ".join(ORDERS))
    if invocation.id == "fill":
        forkclient.ensure(configuration.load().factory.pool)
        return b"[]"
    told = (forkclient.order(invocation.id, path) for path in forkclient.every())
    return json.dumps([state for state in told if state is not None]).encode()
