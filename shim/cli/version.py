"""`hako version`: the versions of hako and of what it runs on."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.cli.options import Parsed

USAGE = "version"
OPTIONS_END_AT_FIRST_WORD = False
OPTIONS: list[object] = []


def main(parsed: Parsed) -> int:
    """Print one line per component."""
    print("hako")
    return 0
