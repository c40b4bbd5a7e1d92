"""Golden files: what a pure function produced when somebody last read it and found it right.

HAKO_UPDATE_GOLDEN=1 writes them again; read the difference before committing it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "golden"


def check(name: str, text: str) -> None:
    """Compare `text` with the golden file tests/golden/`name`."""
    path = ROOT / name
    if os.environ.get("HAKO_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"{path} is missing: run once with HAKO_UPDATE_GOLDEN=1 and read it"
    assert text == path.read_text()


def command_lines(argv: Sequence[str]) -> str:
    """A command as text: each option with its value on a line."""
    lines: list[str] = []
    for word in argv:
        if lines and not word.startswith("-") and lines[-1].startswith("-") and " " not in lines[-1]:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines) + "\n"
