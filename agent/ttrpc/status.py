"""gRPC's status codes, which ttrpc uses, and the error that carries one over the wire."""

from __future__ import annotations

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
ABORTED = 10
OUT_OF_RANGE = 11
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
DATA_LOSS = 15
UNAUTHENTICATED = 16

_NAMES = {value: name for name, value in list(globals().items()) if name.isupper() and isinstance(value, int)}


def name(code: int) -> str:
    """ "NOT_FOUND" of 5; "CODE_99" of a number without a name."""
    return _NAMES.get(code, f"CODE_{code}")


class RpcError(Exception):
    """A call failed with a status: raised by a handler to choose one, by a client as the peer answered."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message} ({name(code)})")
        self.code = code
        self.message = message


def status_of(exc: BaseException) -> tuple[int, str]:
    """Code and message that a failed handler's exception stands for: its `code` attribute, else UNKNOWN."""
    code = getattr(exc, "code", None)
    if not isinstance(code, int) or code == OK:
        code = UNKNOWN
    if isinstance(exc, RpcError):
        return code, exc.message
    return code, str(exc) or type(exc).__name__
