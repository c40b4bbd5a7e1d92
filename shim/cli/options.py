"""Command line options: a table per verb, from which parsing and `--help` follow.

Owns: the syntax that docker and podman users know: `-it`, `-e A=B`, `--name=x`, `--rm`, `--rm=false`, `--`,
and options that end at the first word where a command of the user's own follows (`hako run IMAGE ls -l`).
Must not know: any verb. Not argparse, whose import alone takes as long as a whole `hako exec` may use up
before it reaches the container (6 ms), and which takes options out of the middle of the user's command.
"""

from __future__ import annotations

from shim.errors import INVALID_ARGUMENT, HakoError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FLAG, VALUE, MANY = "flag", "value", "many"


class UsageError(HakoError):
    """The command line is wrong; the message says which word."""

    code = INVALID_ARGUMENT


class Option:
    """One row of a verb's table: its names (the first long one is the key), what it takes and its help."""

    __slots__ = ("help", "key", "kind", "metavar", "names")

    def __init__(self, names: str, metavar: str, help: str, kind: str = "") -> None:
        self.names = names.split()
        self.key = next((name for name in self.names if name.startswith("--")), self.names[0])
        self.metavar = metavar
        self.help = help
        self.kind = kind or (VALUE if metavar else FLAG)


class Parsed:
    """What was given: typed getters over the options, and the words that are not options."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._values: dict[str, list[str]] = {}

    def add(self, key: str, value: str) -> None:
        self._values.setdefault(key, []).append(value)

    def given(self, key: str) -> bool:
        return key in self._values

    def flag(self, key: str) -> bool:
        return self._values.get(key, ["false"])[-1] == "true"

    def text(self, key: str, default: str = "") -> str:
        return self._values.get(key, [default])[-1]

    def many(self, key: str) -> list[str]:
        return list(self._values.get(key, []))


def parse(options: Sequence[Option], argv: Sequence[str], *, end_at_first_word: bool) -> Parsed:
    """Read `argv` (without the verb). Raises UsageError naming the word that is wrong."""
    names = {name: option for option in options for name in option.names}
    parsed, rest = Parsed(), list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            parsed.words += rest
            break
        if word == "-" or not word.startswith("-"):
            parsed.words.append(word)
            if end_at_first_word:
                parsed.words += rest
                break
        elif word.startswith("--"):
            _long(names, word, rest, parsed)
        else:
            _short(names, word, rest, parsed)
    return parsed


def _long(names: dict[str, Option], word: str, rest: list[str], parsed: Parsed) -> None:
    name, equals, value = word.partition("=")
    option = _known(names, name)
    if option.kind == FLAG:
        if equals and value not in ("true", "false"):
            raise UsageError(f"{name} is on or off: {name}, {name}=true or {name}=false, not {word}")
        parsed.add(option.key, value or "true")
    elif equals:
        parsed.add(option.key, value)
    else:
        parsed.add(option.key, _next(name, option, rest))


def _short(names: dict[str, Option], word: str, rest: list[str], parsed: Parsed) -> None:
    """`-it`, `-eA=B` and `-e A=B`: flags up to the first letter with a value, which gets the remainder."""
    letters = word[1:]
    while letters:
        name, letters = "-" + letters[0], letters[1:]
        option = _known(names, name)
        if option.kind == FLAG:
            parsed.add(option.key, "true")
        else:
            parsed.add(option.key, letters.removeprefix("=") if letters else _next(name, option, rest))
            return


def _known(names: dict[str, Option], name: str) -> Option:
    if name in names:
        return names[name]
    near = [known for known in names if name.startswith("--") and known.startswith(name)]
    raise UsageError(f"unknown option {name}", hint=f"did you mean {' or '.join(near)}?" if near else "")


def _next(name: str, option: Option, rest: list[str]) -> str:
    if not rest:
        raise UsageError(f"{name} needs a value: {name} {option.metavar}")
    return rest.pop(0)


def help_text(usage: str, summary: str, options: Sequence[Option]) -> str:
    """The text of `hako VERB --help`."""
    lines = [f"Usage: hako {usage}", "", summary[:1].upper() + summary[1:] + "."]
    rows = [(f"{', '.join(option.names)} {option.metavar}".rstrip(), option) for option in options]
    width = min(max((len(left) for left, _ in rows), default=0), 34)
    if rows:
        lines += ["", "Options:"]
    for left, option in rows:
        many = "; may be given again" if option.kind == MANY else ""
        lines.append(f"  {left:<{width}}  {option.help}{many}")
    return "\n".join(lines) + "\n"
