"""`hako version`: the versions of hako and of what it runs on."""

from __future__ import annotations

import os
import sys

from shim.cli.options import Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.cli.options import Parsed

USAGE = "version [--json]"
OPTIONS_END_AT_FIRST_WORD = False
OPTIONS = [Option("--json", "", "as JSON")]


def main(parsed: Parsed) -> int:
    """Print one line per component; with --json one object."""
    from shim import VERSION

    release = os.uname()
    found = {
        "hako": VERSION,
        "python": ".".join(map(str, sys.version_info[:3])),
        "kernel": f"{release.sysname} {release.release} {release.machine}",
        "code": os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
    }
    if parsed.flag("--json"):
        import json

        print(json.dumps(found, indent=2))
    else:
        print("".join(f"{name + ':':<8} {value}\n" for name, value in found.items()), end="")
    return 0
