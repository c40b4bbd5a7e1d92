"""Undoing, in reverse order, what was built before a step failed (contextlib.ExitStack without its imports).

Called by container.py: push() after each thing made, release() when all is well, unwind() when it is not.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Rollback:
    """Undo actions, run last made first."""

    __slots__ = ("_actions",)

    def __init__(self) -> None:
        self._actions: list[Callable[[], object]] = []

    def push(self, action: Callable[[], object]) -> None:
        """Run `action` if it comes to unwind()."""
        self._actions.append(action)

    def release(self) -> None:
        """What was made stays."""
        self._actions.clear()

    def unwind(self, error: BaseException) -> None:
        """Undo everything; what fails in that becomes a note of `error` and stops nothing."""
        while self._actions:
            try:
                self._actions.pop()()
            except Exception as also:  # noqa: BLE001 - the first error is the one to report
                error.add_note(f"and undoing failed: {type(also).__name__}: {also}")
