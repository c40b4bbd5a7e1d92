"""The two commands as files that can be put anywhere: three lines of Python with every path baked in.

Owns: their text. containerd's tests copy the shim's file alone into another directory and run it there, so
nothing may be looked up beside the file; -I and -S keep the user's environment and the site directories
out, which also saves half of Python's start-up (10 ms in all). Called by install/checkout.py and
install/prefix.py.

The shim's begins as a shell's script, which gives the answer to `delete` that the pod's process has left in the bundle, where
engines execute us (shim/task/deleted.py): that takes 2 ms and not 16. For Python those lines are a string.
"""

from __future__ import annotations

import os
import sys

from shim import paths

COMMANDS = {"hako": "hako", "containerd-shim-hako-v2": "containerd_shim"}
INTERPRETER = "/usr/bin/python3"

_HAKO = "#!{interpreter} -IS\n"
_SHIM = """\
#!/bin/sh
''':'
for last; do :; done
[ "$last" = delete ] && [ -f {answer} ] && exec /bin/cat {answer}
exec {interpreter} -IS "$0" "$@"
'''
"""
_TEMPLATE = """\
# Made by hako's installer. The code: {code}
import sys
if sys.version_info[:2] != {version}:
    sys.exit("{name}: made for Python {dotted}, but {interpreter} is another now: `make install` again")
sys.path += {path!r}
from shim.__main__ import {entry}
sys.exit({entry}())
"""


def text(command: str, code: str, site: str, interpreter: str = INTERPRETER) -> str:
    """The launcher of `command`; `code`: directory of `shim` and `agent`, `site`: that of the libraries."""
    return (_HAKO if command == "hako" else _SHIM).format(interpreter=interpreter, answer=paths.ANSWER_FILE) + _TEMPLATE.format(
        interpreter=interpreter,
        code=code,
        version=sys.version_info[:2],
        dotted=".".join(map(str, sys.version_info[:2])),
        name=command,
        path=[code, site],
        entry=COMMANDS[command],
    )


def write(directory: str, code: str, site: str) -> list[str]:
    """Write both launchers into `directory` and return their paths."""
    os.makedirs(directory, exist_ok=True)
    return [_write(os.path.join(directory, command), text(command, code, site)) for command in COMMANDS]


def _write(path: str, content: str) -> str:
    """Replace the file in one step, so that a command which is being started sees the old or the new one."""
    draft = f"{path}.new"
    with open(draft, "w", encoding="utf-8") as stream:
        stream.write(content)
    os.chmod(draft, 0o755)
    os.replace(draft, path)
    return path
