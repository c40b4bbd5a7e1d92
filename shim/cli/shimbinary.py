"""containerd-shim-hako-v2 as `hako run` calls it: in the same way as containerd does.

Owns: its command line, and which file it is: our own interpreter on the same code, as `hako` is not
necessarily on PATH.
"""

from __future__ import annotations

import os
import sys

from shim import paths
from shim.byhand import registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.byhand.registry import Container

START_TIMEOUT = 20.0
DELETE_TIMEOUT = 30.0


def argv(container: Container, action: str) -> list[str]:
    """The command line for `start` or `delete`, to be run in any directory."""
    words = ["-namespace", registry.NAMESPACE, "-address", "", "-publish-binary", "", "-id", container.id]
    return [*program(), *words, "-bundle", container.directory, action]


def program() -> list[str]:
    """The interpreter and what it runs; the daemon keeps this as its command line."""
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "containerd-shim-hako-v2")
    if os.access(beside, os.X_OK):
        return [beside]
    path = [paths.install_root(), *_site()]
    run = "from shim.__main__ import containerd_shim; sys.exit(containerd_shim())"
    return [sys.executable, "-ISc", f"import sys; sys.path += {path!r}; {run}"]


def start(container: Container) -> str:
    """Start the pod's process; its address."""
    from shim import process  # 6 ms that exec and list do not need

    return process.run(argv(container, "start"), START_TIMEOUT, env=environment()).decode().strip()


def delete(container: Container) -> None:
    """Take away what is left of a pod whose process is gone."""
    from shim import process

    process.run(argv(container, "delete"), DELETE_TIMEOUT, env=environment())


def _site() -> list[str]:
    import msgspec

    return [os.path.dirname(os.path.dirname(msgspec.__file__))]


def order(words: list[str], timeout: float = 10.0) -> bytes:
    """Call it for something that is about no container; what it says. Raises CommandFailed."""
    from shim import process

    return process.run([*program(), *words], timeout, env=environment())


def environment() -> dict[str, str]:
    """Ours without what is the user's own: hako's variables and where programs are."""
    kept = {key: value for key, value in os.environ.items() if key.startswith("HAKO_")}
    from shim.process import ENVIRONMENT

    return {**ENVIRONMENT, **kept}
