"""The OCI runtime spec of containers that `hako run` makes, and of processes that `hako exec` adds."""

from __future__ import annotations

from shim.runspec.options import Bind, RunOptions
from shim.runspec.spec import STOP_SIGNAL, build, make, set_user
from shim.runspec.users import ImageUser, UserError, resolve_user

__all__ = [
    "STOP_SIGNAL",
    "Bind",
    "ImageUser",
    "RunOptions",
    "UserError",
    "build",
    "make",
    "resolve_user",
    "set_user",
]
