"""`hako kill`: a signal to the container's first process."""

from __future__ import annotations

from shim.cli import ending, values
from shim.cli.options import Option
from shim.cli.several import each

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.cli.options import Parsed

USAGE = "kill [-s SIGNAL] CONTAINER..."
OPTIONS_END_AT_FIRST_WORD = False
OPTIONS = [Option("-s --signal", "SIGNAL", "name or number; KILL by default")]


def main(parsed: Parsed) -> int:
    """Send it to each."""
    number = values.signal_number(parsed.text("--signal", "KILL"))
    return each(parsed.words, lambda container: ending.send(container, number))
