"""What the guest agent can fail with; each class carries the ttrpc status that the caller sees.

    AgentError (INTERNAL)
    ├── NotFound            NOT_FOUND            no such container, process, device ...
    ├── AlreadyExists       ALREADY_EXISTS       the id is taken
    ├── InvalidSpec         INVALID_ARGUMENT     the request asks for something that cannot be meant
    ├── WrongState          FAILED_PRECONDITION  the verb is legal, but not now
    ├── DeadlineExceeded    DEADLINE_EXCEEDED    bounded waiting came to its end
    ├── Unsupported         UNIMPLEMENTED        legal, and this agent does not do it
    └── StepError           INTERNAL             a step of create, start, remove failed: which, errno, on
    what

Owns the wording. Knows nothing of ttrpc but the numbers of its status codes (gRPC's, frozen).
Raised everywhere in `agent`.
"""

from __future__ import annotations

import os

INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
FAILED_PRECONDITION = 9
UNIMPLEMENTED = 12
INTERNAL = 13


class AgentError(Exception):
    """An error whose text is for the user and whose `code` (ttrpc status) is for the program."""

    code = INTERNAL


class NotFound(AgentError):
    """The named object is not there (any more)."""

    code = NOT_FOUND

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name!r} not found")
        self.kind = kind
        self.name = name


class AlreadyExists(AgentError):
    """The name is taken."""

    code = ALREADY_EXISTS

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name!r} already exists")
        self.kind = kind
        self.name = name


class InvalidSpec(AgentError):
    """A field of the request is wrong; `field` is its OCI path, such as `linux.namespaces[2].type`."""

    code = INVALID_ARGUMENT

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class WrongState(AgentError):
    """The object exists and its state forbids the verb."""

    code = FAILED_PRECONDITION

    def __init__(self, name: str, state: str, verb: str) -> None:
        super().__init__(f"cannot {verb} container {name!r}: it is {state}")
        self.name = name
        self.state = state
        self.verb = verb


class DeadlineExceeded(AgentError):
    """`what` did not come to its end within `seconds`."""

    code = DEADLINE_EXCEEDED

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"{what} took longer than {seconds:g} s")
        self.what = what
        self.seconds = seconds


class Unsupported(AgentError):
    """A legal request for something that this agent does not do."""

    code = UNIMPLEMENTED


class StepError(AgentError):
    """A step failed. `errno` is 0 where no system call did; `detail`, where given, replaces its text."""

    def __init__(self, step: str, errno: int, path: str = "", detail: str = "") -> None:
        super().__init__(": ".join(part for part in (step, path, detail or errno_text(errno)) if part))
        self.step = step
        self.errno = errno
        self.path = path
        self.detail = detail


def errno_text(number: int) -> str:
    """The errno in the words of Go's runtimes (lower case), which engines search for; "" for 0."""
    if not number:
        return ""
    text = os.strerror(number)
    return text[:1].lower() + text[1:]


def step_error(step: str, error: OSError) -> StepError:
    """`error`, said as the failure of `step`; a text that says more than its errno is kept."""
    path = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    if not error.errno:
        return StepError(step, 0, path, str(error))
    text = error.strerror or ""
    return StepError(step, error.errno, path, "" if text.endswith(os.strerror(error.errno)) else text)
