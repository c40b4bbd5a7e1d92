"""`hako list`: the containers, running ones by default."""

from __future__ import annotations

from shim.byhand import registry
from shim.cli import status
from shim.cli.options import Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.cli.options import Parsed

USAGE = "list [-a] [-q | --json]"
OPTIONS_END_AT_FIRST_WORD = False
OPTIONS = [
    Option("-a --all", "", "also those that have ended"),
    Option("-q --quiet", "", "only ids"),
    Option("--json", "", "everything known, as a JSON array"),
]


def main(parsed: Parsed) -> int:
    """Print them, oldest first."""
    found = [(container, status.of(container)) for container in registry.all()]
    if not parsed.flag("--all"):
        found = [(container, state) for container, state in found if state.status in status.LIVE]
    if parsed.flag("--json"):
        import json

        print(json.dumps([_as_json(container, state) for container, state in found], indent=2))
    elif parsed.flag("--quiet"):
        print("".join(f"{container.id}\n" for container, _ in found), end="")
    else:
        _print_table(found)
    return 0


def _print_table(found: list[tuple[registry.Container, status.State]]) -> None:
    import time

    from shim.cli.table import age, table

    rows = [
        (
            c.id,
            c.name,
            c.image,
            _shortened(" ".join(c.command)),
            f"{age(time.time() - c.created)} ago",
            state.text,
        )
        for c, state in found
    ]
    print(table(("ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS"), rows), end="")


def _as_json(container: registry.Container, state: status.State) -> dict[str, Any]:
    return container.as_dict() | {
        "bundle": container.directory,
        "status": state.status,
        "exit_status": state.exit_status,
        "finished": state.finished,
    }


def _shortened(text: str, limit: int = 30) -> str:
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return printable if len(printable) <= limit else f"{printable[: limit - 3]}..."
