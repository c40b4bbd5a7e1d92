"""What users write in options, read into plain values or refused with the reason.

Owns: the syntax of names, sizes, signals, volumes, variables and networks on the command line, all pure
except for the existence of a volume's source. Must not know: what a container does with a value.
"""

from __future__ import annotations

import os

from shim.cli.options import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NAME_LIMIT = 64  # also the hostname's limit in Linux (HOST_NAME_MAX)
_NAME_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME_REST = _NAME_FIRST | frozenset("_.-")
_SIZE_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_PROPAGATION = frozenset(("private", "rprivate", "slave", "rslave", "shared", "rshared"))
# What takes away a confinement that the guest does not have.
NOT_HERE = (("label", "disable"), ("apparmor", "unconfined"))
MEMORY_MINIMUM = 6 << 20  # Docker's: below it nothing starts


class Volume:
    """`-v SRC:DST[:OPTIONS]`: host path, container path, read-only or not, mount propagation ("" for the
    default)."""

    __slots__ = ("destination", "propagation", "read_only", "source")

    def __init__(self, source: str, destination: str, read_only: bool, propagation: str) -> None:
        self.source = source
        self.destination = destination
        self.read_only = read_only
        self.propagation = propagation


def name(text: str) -> str:
    """A container name or hostname: letters, digits, `_.-`, starting with a letter or digit."""
    if not text or len(text) > NAME_LIMIT or text[0] not in _NAME_FIRST or not _NAME_REST.issuperset(text):
        raise UsageError(
            f"not a usable name: {text!r}",
            hint=f"letters, digits and _.- after a first letter or digit, at most {NAME_LIMIT} characters",
        )
    return text


def memory(text: str) -> int:
    """`512m` in bytes; units b, k, m, g, t of 1024, none means bytes."""
    digits, unit = (text[:-1], text[-1:].lower()) if text[-1:].isalpha() else (text, "b")
    if unit not in _SIZE_UNITS or not _is_decimal(digits):
        raise UsageError(f"not an amount of memory: {text!r}", hint="a number and b, k, m or g, such as 512m")
    size = int(float(digits) * _SIZE_UNITS[unit])
    if size < MEMORY_MINIMUM:
        raise UsageError(f"--memory {text} is too little", hint="at least 6m")
    return size


def cpus(text: str) -> float:
    """`1.5` processors; above 0."""
    if not _is_decimal(text) or float(text) < 0.01:
        raise UsageError(f"not a number of processors: {text!r}", hint="such as 2 or 0.5, at least 0.01")
    return float(text)


def seconds(text: str) -> float:
    """A time-out in seconds, 0 or more."""
    if not _is_decimal(text):
        raise UsageError(f"not a number of seconds: {text!r}")
    return float(text)


def count(text: str) -> int:
    """A number of lines; `all` is -1."""
    if text == "all":
        return -1
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"not a number of lines: {text!r}", hint="a number or all")
    return int(text)


def signal_number(text: str) -> int:
    """`KILL`, `SIGKILL`, `9`, `RTMIN+3`; Linux numbers up to 64."""
    if text.isascii() and text.isdigit() and 0 < int(text) <= 64:
        return int(text)
    word, plus, offset = text.upper().removeprefix("SIG").partition("+")
    number = _signal_names().get(word)
    if number is None or (plus and not (word == "RTMIN" and offset.isdigit() and number + int(offset) <= 64)):
        raise UsageError(f"no such signal: {text!r}", hint="a name such as TERM or a number from 1 to 64")
    return number + int(offset or 0)


def volume(text: str, cwd: str) -> Volume:
    """`SRC:DST[:ro,...]`. SRC is a host path that exists, relative ones below `cwd`; DST is absolute."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[0] or not parts[1]:
        raise UsageError(f"not a volume: {text!r}", hint="SRC:DST or SRC:DST:ro")
    source, destination = os.path.join(cwd, parts[0]), parts[1]
    if not destination.startswith("/"):
        raise UsageError(f"volume {text!r}: the path in the container must be absolute: {destination}")
    if not os.path.exists(source):
        hint = "" if "/" in parts[0] else "named volumes do not exist in hako; give a path"
        raise UsageError(f"volume {text!r}: {source} does not exist", hint=hint)
    words = set(parts[2].split(",")) if len(parts) == 3 else set()
    unknown = words - _PROPAGATION - {"ro", "rw"}
    if unknown or len(words & _PROPAGATION) > 1 or {"ro", "rw"} <= words:
        raise UsageError(
            f"volume {text!r}: options {parts[2]}",
            hint="ro or rw, and one of " + ", ".join(sorted(_PROPAGATION)),
        )
    return Volume(
        os.path.realpath(source),
        os.path.normpath(destination),
        "ro" in words,
        next(iter(words & _PROPAGATION), ""),
    )


def environment(files: Iterable[str], settings: Iterable[str], own: Mapping[str, str]) -> list[str]:
    """`--env-file` and `-e` as KEY=VALUE, later ones winning; a KEY alone takes its value from `own`, if it
    has one."""
    found: dict[str, str] = {}
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                _set(found, line.lstrip(), own, f"{file}:{number}")
    for setting in settings:
        _set(found, setting, own, "-e")
    return [f"{key}={value}" for key, value in found.items()]


def annotation(text: str) -> tuple[str, str]:
    """`KEY=VALUE`."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"not an annotation: {text!r}", hint="KEY=VALUE")
    return key, value


def network(text: str) -> tuple[str, str]:
    """`nat`, `none` or `netns:PATH` as (mode, path)."""
    mode, _, path = text.partition(":")
    if text in ("nat", "none"):
        return text, ""
    if mode != "netns" or not path.startswith("/"):
        raise UsageError(f"no such network: {text!r}", hint="nat, none or netns:/PATH")
    if not os.path.exists(path):
        raise UsageError(f"--network {text}: {path} does not exist")
    return mode, path


def security(options: Iterable[str]) -> tuple[str, bool]:
    """`--security-opt` as (seccomp: "" | "unconfined" | FILE, no_new_privileges)."""
    seccomp, no_new_privileges = "", False
    for option in options:
        key, _, value = option.replace(":", "=", 1).partition("=") if "=" not in option else option.partition("=")
        if key == "seccomp" and value:
            seccomp = value if value == "unconfined" else os.path.abspath(value)
        elif key == "no-new-privileges" and value in ("", "true", "false"):
            no_new_privileges = value != "false"
        elif (key, value) in NOT_HERE:
            pass
        else:
            raise UsageError(
                f"--security-opt {option}: not known",
                hint="seccomp=FILE, seccomp=unconfined or no-new-privileges",
            )
    return seccomp, no_new_privileges


def _lines(file: str) -> list[str]:
    try:
        with open(file, encoding="utf-8") as stream:
            return stream.read().removeprefix("\ufeff").splitlines()
    except OSError as exc:
        raise UsageError(f"--env-file {file}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"--env-file {file}: not UTF-8 text") from exc


def _set(found: dict[str, str], text: str, own: Mapping[str, str], where: str) -> None:
    key, equals, value = text.partition("=")
    if not key or (where != "-e" and any(character.isspace() for character in key)) or "\0" in text:
        raise UsageError(f"{where}: not a variable: {text!r}", hint="KEY=VALUE, or KEY alone to pass your own")
    if equals:
        found[key] = value
    elif key in own:
        found[key] = own[key]


def _is_decimal(text: str) -> bool:
    whole, _, fraction = text.partition(".")
    return text.isascii() and (whole + fraction).isdigit()


def _signal_names() -> dict[str, int]:
    import signal

    names = {member.name.removeprefix("SIG"): int(member) for member in signal.Signals}
    return names | {"RTMIN": 34, "RTMAX": 64, "IOT": 6, "CLD": 17, "POLL": 29, "PWR": 30, "STKFLT": 16}
