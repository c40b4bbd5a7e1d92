"""What is done when a container of `hako run` has ended, and when it is removed.

Owns: the order, and what each of the two takes away. Must not know: the VM, the task API. Called by the pod
process at the end (shim/task/autoremove.py), which does it although `hako run` may be gone, and by `hako
rm` and a failed `hako run`. Everything may be repeated, and what is not there is no error.

    exited    how it ended is written down
    ended     its network is given back; root filesystem, log and name stay
    removed   everything goes
"""

from __future__ import annotations

from shim.byhand import registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.byhand.registry import Container

# In the annotations of a container made by hand: "true" means that it is removed when it has ended.
REMOVE_ANNOTATION = "io.hako.auto-remove"


def exited(container_id: str, exit_status: int, exited_at: float) -> None:
    """Write down how it ended (`exited_at` in seconds since 1970)."""
    container = registry.load(container_id)
    if container is not None:
        result = {"exit_status": exit_status, "exited_at": exited_at}
        registry.write_json(container.file(registry.EXIT), result)


def ended(container_id: str) -> None:
    """Give its network back, once its VM is gone."""
    _release_network(container_id)


def exit_of(container: Container) -> tuple[int, float] | None:
    """(exit status, seconds since 1970) of an ended container; None if it has not ended or nobody knows."""
    found = registry.read_json(container.file(registry.EXIT))
    return (int(found["exit_status"]), float(found["exited_at"])) if found else None


def removed(container_id: str) -> None:
    """Take away everything that is left of it. Its processes have ended.

    Raises HakoError when something cannot be removed; the rest is gone then, and it can be tried again.
    """
    from shim.image import overlay

    container = registry.load(container_id)
    _all(
        lambda: _release_network(container_id),
        lambda: overlay.unmount(container_id),
        lambda: _forget(container_id, container),
    )


def _release_network(container_id: str) -> None:
    from shim.network import nat

    nat.release(container_id)


def _forget(container_id: str, container: Container | None) -> None:
    if container is None:  # a `hako run` that was killed before it had written the record
        container = registry.Container(id=container_id, name=container_id)
    registry.forget(container)


def _all(*actions: Callable[[], object]) -> None:
    """Do each, whatever becomes of the others; raise the first failure at the end."""
    failures: list[Exception] = []
    for action in actions:
        try:
            action()
        except Exception as exc:  # noqa: BLE001 - it is raised below, after the others had their turn
            failures.append(exc)
    if failures:
        for other in failures[1:]:
            failures[0].add_note(str(other))
        raise failures[0]
