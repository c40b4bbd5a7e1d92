"""OCI hooks that run on the host: prestart, createRuntime, createContainer, poststart, poststop.

Owns: how a hook is executed (state on stdin, its own environment, its time-out) and what its failure means.
Must not know: when in a container's life it is called; container.py does. startContainer hooks run in the
guest.

The pid in the state is the stub's: its namespaces and cgroup are what hooks of network engines look at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shim import process
from shim.errors import HakoError
from shim.oci.spec import Hook

DEFAULT_TIMEOUT = 60.0  # seconds; the specification leaves it open


class HookFailed(HakoError):
    """A hook that must succeed did not."""


def run_all(kind: str, hooks: Sequence[Hook] | None, state: bytes) -> None:
    """Run the hooks of one kind in order; the first failure ends it. Raises HookFailed."""
    for index, hook in enumerate(hooks or ()):
        try:
            _run(hook, state)
        except HakoError as exc:
            raise HookFailed(str(exc), step=f"{kind} hook", object=f"hooks.{kind}[{index}]") from exc


def run_all_tolerantly(kind: str, hooks: Sequence[Hook] | None, state: bytes, warn: Callable[[str], None]) -> None:
    """Run the hooks of one kind in order; failures are only told (poststart, poststop: runtime-spec,
    lifecycle).
    """
    for index, hook in enumerate(hooks or ()):
        try:
            _run(hook, state)
        except HakoError as exc:
            warn(f"hooks.{kind}[{index}]: {exc}")


def _run(hook: Hook, state: bytes) -> None:
    environment = dict(entry.partition("=")[::2] for entry in hook.env or ())
    argv = [hook.path, *(hook.args or ())[1:]]
    process.run(argv, float(hook.timeout or DEFAULT_TIMEOUT), state, env=environment)
