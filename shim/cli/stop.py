"""`hako stop`: ask the container to end, then make it."""

from __future__ import annotations

from shim import config
from shim.cli import ending, values
from shim.cli.options import Option
from shim.cli.several import each

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.cli.options import Parsed

USAGE = "stop [-t SECONDS] CONTAINER..."
OPTIONS_END_AT_FIRST_WORD = False
OPTIONS = [Option("-t --time", "SECONDS", "between the image's stop signal (SIGTERM) and SIGKILL; 10 by default")]


def main(parsed: Parsed) -> int:
    """Stop each; one that has ended already is stopped."""
    given = parsed.text("--time")
    patience = values.seconds(given) if given else config.load().runtime.stop_timeout
    return each(parsed.words, lambda container: ending.stop(container, container.stop_signal, patience))
