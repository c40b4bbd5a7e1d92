"""`hako rm`: forget a container and take away what it has left."""

from __future__ import annotations

from shim.byhand import aftercare
from shim.cli import ending, status
from shim.cli.options import Option
from shim.cli.several import each
from shim.errors import WrongState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.byhand.registry import Container
    from shim.cli.options import Parsed

USAGE = "rm [-f] CONTAINER..."
OPTIONS_END_AT_FIRST_WORD = False
OPTIONS = [Option("-f --force", "", "kill it first if it runs")]


def main(parsed: Parsed) -> int:
    """Remove each."""
    return each(parsed.words, lambda container: remove(container, force=parsed.flag("--force")))


def remove(container: Container, *, force: bool) -> None:
    """Remove one. Raises WrongState if it runs and need not be killed."""
    state = status.of(container)
    if state.status in status.LIVE:
        if not force:
            hint = f"hako stop {container.name}, or hako rm -f {container.name}"
            raise WrongState(f"{container.name} is {state.text}", hint=hint)
        ending.kill(container)
    ending.clean_up(container)
    aftercare.removed(container.id)
