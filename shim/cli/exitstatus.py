"""hako's own exit statuses, which are docker's and podman's.

125 hako itself failed    126 the command cannot be executed    127 there is no such command
"""

from __future__ import annotations

from shim.errors import HakoError

CANNOT_EXECUTE, NOT_FOUND = 126, 127
# The user left: by the detach keys, or because nobody reads our output (128 + SIGPIPE).
LEFT = {"detached": 0, "broken pipe": 141}

# The words of the agent, which are runc's, because engines look for them.
_NOT_FOUND = ("executable file not found", "no such file or directory", "not a directory")
_CANNOT_EXECUTE = ("permission denied", "is a directory", "exec format error", "text file busy")


class StartFailed(HakoError):
    """The command could not be started."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def of_start(exc: HakoError) -> HakoError:
    """`exc`, or if it is about the command itself, a StartFailed with the status that fits."""
    text = str(exc)
    about_command = text.partition("unable to start container process: exec")[2] or text.partition('exec: "')[2]
    if any(words in about_command for words in _NOT_FOUND):
        return StartFailed(text, NOT_FOUND)
    if any(words in about_command for words in _CANNOT_EXECUTE):
        return StartFailed(text, CANNOT_EXECUTE)
    return exc
