"""`hako config`: the configuration as it is in effect, in the form of the file."""

from __future__ import annotations

import os

from shim.cli.options import Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.cli.options import Parsed

USAGE = "config [--file FILE]"
OPTIONS_END_AT_FIRST_WORD = False
OPTIONS = [Option("--file", "FILE", "this file instead of the one that is in effect")]


def main(parsed: Parsed) -> int:
    """Print it; a file with an error is refused with line, key and what is allowed."""
    from shim import config, paths

    file = parsed.text("--file")
    values = config.load(file or None)
    read = [path for path in ([file] if file else paths.config_candidates()) if os.path.exists(path)]
    print(f"# from {read[0]}" if read else "# built-in defaults; no file is there")
    for section in config.SECTIONS:
        print(f"\n[{section}]")
        table = getattr(values, section)
        for key in table.__struct_fields__:
            print(f"{key} = {toml_value(getattr(table, key))}")
    return 0


def toml_value(value: object) -> str:
    """A value as TOML writes it. TOML's basic strings are escaped like JSON's."""
    import json

    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
