"""The guests of this checkout, built where the cache lacks them."""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

from shim.process import run
from tests.framework.importgraph import REPOSITORY

BUILD_SECONDS = 900.0


@functools.cache
def build(what: str) -> dict[str, Any]:
    """guest-kernel/build.py's answer for `what` (guest, stock): host paths kernel, image or initrd; kind; version.

    What `hako` finds in the cache stays what it was.
    """
    argv = [sys.executable, str(REPOSITORY / "guest-kernel/build.py"), what, "--aside", "--print-json"]
    files: dict[str, Any] = json.loads(run(argv, BUILD_SECONDS).splitlines()[-1])
    return files
