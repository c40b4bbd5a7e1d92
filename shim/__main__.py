"""Entry points of both commands, dispatched by argv[0] and verb; imports only what the verb needs.

Owns: which module serves which verb, and how an error becomes text and exit status. A failure of hako
itself exits with 125 (126: the command cannot be executed, 127: it does not exist), so that it is not taken
for the command's own status; docker and podman do the same. Must not know: what any verb does.
"""

from __future__ import annotations

import os
import sys

from shim.cli import ALIASES, VERBS
from shim.errors import HakoError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import NoReturn

EXIT_OWN_FAILURE = 125
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def main() -> int:
    """Entry for `python -m shim` and for launchers: the program's name says which command it is."""
    if os.path.basename(sys.argv[0]).startswith("containerd-shim-"):
        containerd_shim()
    return hako()


def containerd_shim() -> NoReturn:
    """`containerd-shim-hako-v2`, with the argv that containerd and CRI-O use; ends the process.

    An engine waits for the end of each `start` and `delete`: without the interpreter's own clean-up that is 3 ms earlier.
    What it says is out by then: bootstrap.py writes past Python's buffers, and stderr has none beyond a line's end.
    """
    from shim.task.bootstrap import main as bootstrap

    os._exit(bootstrap(sys.argv[1:]))


def hako() -> int:
    """`hako VERB ...`."""
    try:
        return _verb(sys.argv[1:])
    except HakoError as exc:
        return _fail(str(exc), exc)
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141  # 128 + SIGPIPE
    except OSError as exc:
        return _fail(f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc), exc)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _verb(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview(), end="")
        return 0 if argv else EXIT_OWN_FAILURE
    verb = "version" if argv[0] in ("-v", "--version") else ALIASES.get(argv[0], argv[0])
    if verb not in VERBS:
        raise HakoError(f"no such command: {argv[0]}", hint="hako --help lists them")
    return _call(_load(VERBS[verb][0]), verb, argv[1:])


def _call(module: ModuleType, verb: str, argv: list[str]) -> int:
    from shim.cli.options import UsageError, help_text, parse

    ends = module.OPTIONS_END_AT_FIRST_WORD
    if _wants_help(argv, ends, {name for option in module.OPTIONS for name in option.names}):
        print(help_text(module.USAGE, VERBS[verb][1], module.OPTIONS), end="")
        return 0
    try:
        return int(module.main(parse(module.OPTIONS, argv, end_at_first_word=ends)))
    except UsageError as exc:
        exc.step = exc.step or verb
        exc.hint = exc.hint or f"see hako {verb} --help"
        raise


def _wants_help(argv: list[str], ends_at_first_word: bool, names: set[str]) -> bool:
    """Whether help is asked of hako, not of the user's command; -h only where it means nothing else."""
    for word in argv:
        if word == "--help" or (word == "-h" and "-h" not in names):
            return True
        if word == "--" or (ends_at_first_word and not word.startswith("-")):
            return False
    return False


def _load(name: str) -> ModuleType:
    __import__(name)
    return sys.modules[name]


def _overview() -> str:
    rows = "".join(f"  {verb:<9}{summary}\n" for verb, (_, summary) in VERBS.items())
    intro = "Usage: hako COMMAND [options] ...\n\nEvery container in its own microVM.\n\nCommands:\n"
    return f"{intro}{rows}\nhako COMMAND --help says more.\n"


def _fail(message: str, exc: BaseException) -> int:
    if os.environ.get("HAKO_DEBUG"):
        import traceback

        traceback.print_exception(exc)
    print(f"hako: {message}", file=sys.stderr)
    return getattr(exc, "exit_status", EXIT_OWN_FAILURE)


if __name__ == "__main__":
    sys.exit(main())
