"""The errors of the host side, each with the gRPC code that reaches the engine.

    HakoError           UNKNOWN             anything the caller may only report
    ├── NotFound        NOT_FOUND           no such container, exec or process (any more)
    ├── AlreadyExists   ALREADY_EXISTS      the id is taken
    ├── WrongState      FAILED_PRECONDITION the verb is not legal now; nothing was changed
    ├── InvalidSpec     INVALID_ARGUMENT    config.json or a request is wrong: field and reason
    ├── ConfigError     INVALID_ARGUMENT    configuration.toml is wrong: file, line, key, what is allowed
    ├── Unsupported     UNIMPLEMENTED       legal, but not something a VM (or hako) can do
    ├── Unavailable     UNAVAILABLE         the guest or a daemon is gone
    │   └── BootError   UNAVAILABLE         the VM did not come up: step, last lines of console and VMM
    └── Timeout         DEADLINE_EXCEEDED   it may still happen; nobody knows

Owns: the classes and how they read. Must not know: who raises them. `shim/task/service.py` and the CLI are
the only places that turn one into a reply. Imports nothing, because `start` and `delete` load it.
"""

from __future__ import annotations

# Canonical gRPC status codes (google/rpc/code.proto), which ttrpc uses as they are.
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
FAILED_PRECONDITION = 9
UNIMPLEMENTED = 12
UNAVAILABLE = 14


class HakoError(Exception):
    """One failure, said once: what was attempted, on what, why it failed and what might help.

    `str()` gives "step: object: message (hint)" with the empty parts left out; this text is what users see.
    """

    code = UNKNOWN

    def __init__(self, message: str, *, step: str = "", object: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.step = step
        self.object = object
        self.hint = hint

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.step, self.object, self.message) if part)
        return f"{text} ({self.hint})" if self.hint else text


class NotFound(HakoError):
    """The container, exec or process does not exist (any more); the engine may treat it as done."""

    code = NOT_FOUND


class AlreadyExists(HakoError):
    """The id is taken."""

    code = ALREADY_EXISTS


class WrongState(HakoError):
    """The verb is not legal in the present state; nothing was changed."""

    code = FAILED_PRECONDITION


class Unsupported(HakoError):
    """What was asked for is legal, but cannot be had from a VM or from this version."""

    code = UNIMPLEMENTED


class Unavailable(HakoError):
    """The guest, the VMM or a daemon is gone; repeating the request will not help."""

    code = UNAVAILABLE


class Timeout(HakoError):
    """The deadline passed; whether it still happens is not known."""

    code = DEADLINE_EXCEEDED


def of_code(code: int, message: str) -> HakoError:
    """What the other side of a call refused, as an error of ours with its code and its words."""
    error = _KINDS.get(code, HakoError)(message)
    error.code = code
    return error


_KINDS = {kind.code: kind for kind in (NotFound, AlreadyExists, WrongState, Unsupported, Unavailable, Timeout)}


class InvalidSpec(HakoError):
    """A field of config.json or of a request is wrong; `field` is its path, such as `process.args[0]`."""

    code = INVALID_ARGUMENT

    def __init__(self, field: str, reason: str, *, hint: str = "") -> None:
        super().__init__(reason, step="invalid spec", object=field, hint=hint)
        self.field = field
        self.reason = reason


class ConfigError(HakoError):
    """configuration.toml is wrong: the file, the line or the key, and the values that would be accepted."""

    code = INVALID_ARGUMENT

    def __init__(self, reason: str, *, file: str = "", line: int = 0, key: str = "", allowed: str = "") -> None:
        where = f"{file}:{line}" if file and line else file
        super().__init__(
            f"{key}: {reason}" if key else reason,
            step="configuration",
            object=where,
            hint=f"allowed: {allowed}" if allowed else "",
        )
        self.file = file
        self.line = line
        self.key = key
        self.allowed = allowed


class BootError(Unavailable):
    """The VM did not reach its agent.

    `step` is what the builder was doing, `console_tail` the guest's last lines, `vmm_stderr` the VMM's. `killed`: the VMM
    was ended from outside, which says nothing against what it ran.
    """

    def __init__(
        self, step: str, reason: str, *, console_tail: str = "", vmm_stderr: str = "", killed: bool = False
    ) -> None:
        super().__init__(reason, step=step)
        self.killed = killed
        self.console_tail = console_tail
        self.vmm_stderr = vmm_stderr

    def __str__(self) -> str:
        parts = [super().__str__()]
        if self.console_tail.strip():
            parts.append(f"guest console: {last_lines(self.console_tail)}")
        if self.vmm_stderr.strip():
            parts.append(f"VMM: {last_lines(self.vmm_stderr)}")
        return "; ".join(parts)


LAST_LINES = 12
PANIC = "Kernel panic - not syncing"
# Lines of a kernel panic that say something to kernel developers only: its stack, with " ? function+0x1/0x2" in it.
TRACE = (" ? ", "<TASK>", "</TASK>", "Call Trace:", "CPU: ", "Hardware name: ", "Kernel Offset: ", "---[ end ")


def last_lines(text: str, most: int = LAST_LINES) -> str:
    """The last lines of a console or of a program's stderr that say something, as they fit into one message.

    Of a kernel that panicked the first ones from there on: registers of every task may follow.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not any(mark in line for mark in TRACE)]
    panic = next((at for at, line in enumerate(lines) if PANIC in line), len(lines))
    begin = min(panic, max(0, len(lines) - most))
    return " | ".join(lines[begin : begin + most])
