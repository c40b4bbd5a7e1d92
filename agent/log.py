"""Lines to the agent's standard error, which is the guest's console.

Owns the format and the level. Every line costs a trip through the virtual console, so calls are logged only
when `agent.log=debug` is on the kernel command line; failures that carry no status of their own always are.
"""

from __future__ import annotations

import os

ERROR, INFO, DEBUG = range(3)
LEVELS = {"error": ERROR, "warn": ERROR, "info": INFO, "debug": DEBUG, "trace": DEBUG}

_level = [ERROR]


def set_level(name: str) -> None:
    """Choose "error", "info" or "debug"; an unknown name changes nothing."""
    _level[0] = LEVELS.get(name, _level[0])


def error(text: str) -> None:
    """Something failed that the caller may not have been told."""
    _write(text)


def info(text: str) -> None:
    """A state of the agent has changed."""
    if _level[0] >= INFO:
        _write(text)


def tells_calls() -> bool:
    """Whether `debug` says anything."""
    return _level[0] >= DEBUG


def debug(text: str) -> None:
    """A call was made."""
    if _level[0] >= DEBUG:
        _write(text)


def exception(text: str, exc: BaseException) -> None:
    """A bug, with the way to it."""
    import traceback

    _write(text + ": " + "".join(traceback.format_exception(exc)).rstrip())


def _write(text: str) -> None:
    """A full or closed console must not stop the agent."""
    try:
        os.write(2, f"hako-agent: {text}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass
