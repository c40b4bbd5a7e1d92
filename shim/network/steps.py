"""What failed, where: the form in which the network child reports errors to its parent.

Owns: `Step`, which names the attempt around a piece of code, and `Rollback`. Must not know: HakoError (the
parent makes one of it).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class StepFailed(Exception):
    """`step` on `object` failed; `errno` 0 if it was not the kernel that refused."""

    def __init__(self, step: str, object: str, message: str, errno: int = 0) -> None:
        super().__init__(f"{step}: {object}: {message}")
        self.step = step
        self.object = object
        self.message = message
        self.errno = errno


class Step:
    """`with Step("open tap", name):` turns an OSError or a netlink error inside into StepFailed."""

    __slots__ = ("object", "step")

    def __init__(self, step: str, object: str) -> None:
        self.step = step
        self.object = object

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        number = _errno(error)
        if error is not None and number:
            raise StepFailed(self.step, self.object, os.strerror(number), number) from error


def _errno(error: BaseException | None) -> int:
    """errno of an OSError, or of pyroute2's NetlinkError (which has it as `code`)."""
    if isinstance(error, OSError):
        return error.errno or 0
    code = getattr(error, "code", 0)
    return abs(code) if isinstance(code, int) and type(error).__name__ == "NetlinkError" else 0


class Rollback:
    """Undo functions, run last first when the `with` block is left (contextlib.ExitStack costs the child 3
    ms).
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def add(self, undo: Callable[[], object]) -> None:
        """Have `undo` run if what follows fails."""
        self._undo.append(undo)

    def run(self) -> None:
        """Undo now. An undo that fails neither keeps the others from running nor hides the first error."""
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as failed:  # noqa: BLE001 - netlink and system errors alike
                os.write(2, f"undo: {failed}\n".encode())

    def __enter__(self) -> Rollback:
        return self

    def __exit__(self, *_: object) -> None:
        self.run()
