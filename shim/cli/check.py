"""`hako check`: is this host ready, item by item, each with its remedy.

Owns: the form of the answer. What is looked at: hostchecks.py. The exit status is 0 if and only if
containers can run: a warning is something that hako can do without.
"""

from __future__ import annotations

from shim.cli.options import Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.cli.hostchecks import Finding
    from shim.cli.options import Parsed

USAGE = "check [--json]"
OPTIONS_END_AT_FIRST_WORD = False
OPTIONS = [Option("--json", "", "as a JSON object")]
COLOURS = {"ok": "\x1b[32m", "warn": "\x1b[33m", "fail": "\x1b[31m"}


def main(parsed: Parsed) -> int:
    """Look at everything and say it."""
    import sys

    from shim.cli import hostchecks
    from shim.cli.progress import Progress

    findings = []
    with Progress() as progress:
        for name, look in hostchecks.CHECKS.items():
            progress.step(f"looking at {name}")
            findings.append(hostchecks.finding(name, look))
    usable = all(found.level != "fail" for found in findings)
    if parsed.flag("--json"):
        print(as_json(findings, usable=usable))
    else:
        print(as_text(findings, coloured=sys.stdout.isatty()), end="")
        print("This host can run containers." if usable else "This host cannot run containers yet.")
    return 0 if usable else 1


def as_text(findings: list[Finding], *, coloured: bool) -> str:
    """One line per item, its remedy below it."""
    width = max(len(found.name) for found in findings)
    lines = []
    for found in findings:
        level = f"{found.level:<4}"
        level = f"{COLOURS[found.level]}{level}\x1b[0m" if coloured else level
        lines.append(f"{level}  {found.name:<{width}}  {found.text}\n")
        if found.remedy:
            lines.append(f"      {'':<{width}}  -> {found.remedy}\n")
    return "".join(lines)


def as_json(findings: list[Finding], *, usable: bool) -> str:
    """The same for programs."""
    import json

    items = [{"name": f.name, "level": f.level, "text": f.text, "remedy": f.remedy} for f in findings]
    return json.dumps({"usable": usable, "items": items}, indent=2)
