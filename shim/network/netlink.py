"""pyroute2's door: a netlink socket in a namespace, at half the package's import time.

Owns: the only import of pyroute2. Must not know: what is asked of the socket. Called by child.py, bridge.py.
"""

from __future__ import annotations

import sys

from agent.linux import syscalls
from shim.network.steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def enter(netns: int) -> None:
    """Make the network namespace of this descriptor ours."""
    with Step("enter network namespace", "setns"):
        syscalls.setns(netns, syscalls.CLONE_NEWNET)


def open_socket() -> Any:
    """pyroute2's IPRoute, in the namespace that we are in now."""
    if "pyroute2" not in sys.modules:
        _bypass_package()
    try:
        from pyroute2.iproute.linux import IPRoute
    except ImportError:  # a version that is built in another way
        for name in [name for name in sys.modules if name.split(".")[0] == "pyroute2"]:
            del sys.modules[name]
        from pyroute2 import IPRoute
    return IPRoute()


def _bypass_package() -> None:
    """Let pyroute2's modules be imported without the package's `__init__`, which doubles the import time."""
    import importlib.util
    from types import ModuleType

    spec = importlib.util.find_spec("pyroute2")
    if spec is not None:
        package = ModuleType("pyroute2")
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["pyroute2"] = package
