"""The containers of `hako run`: names, records and bundles below the state directory, readable by anybody,
no daemon.

    /run/hako/containers/ID/record.json   what was asked for, written once before the container starts
    /run/hako/containers/ID/              also the bundle: config.json, rootfs/, log, address, output.log, fifos
    /run/hako/containers/ID/exit.json     how it ended, once it has (written by the pod process)
    /run/hako/names/NAME -> ID            a symbolic link, made and removed under a lock on the directory

Owns: these files. Must not know: how a container is made or what state it is in (status.py).
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager

from shim import paths
from shim.errors import AlreadyExists, HakoError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

NAMESPACE = "hako"  # what containerd calls a namespace: our containers never meet an engine's
ID_BYTES = 6
RECORD, EXIT, OUTPUT = "record.json", "exit.json", "output.log"


class Container:
    """One container as it was asked for. `directory` is its bundle on the host."""

    __slots__ = (
        "command",
        "created",
        "id",
        "image",
        "interactive",
        "name",
        "remove",
        "stop_signal",
        "terminal",
    )

    def __init__(self, **fields: Any) -> None:
        self.id: str = fields["id"]
        self.name: str = fields["name"]
        self.image: str = fields.get("image", "")
        self.command: list[str] = fields.get("command", [])
        self.created: float = fields.get("created", 0.0)
        self.terminal: bool = fields.get("terminal", False)
        self.interactive: bool = fields.get("interactive", False)
        self.remove: bool = fields.get("remove", False)
        self.stop_signal: int = fields.get("stop_signal", 15)

    @property
    def directory(self) -> str:
        return os.path.join(containers_root(), self.id)

    def file(self, name: str) -> str:
        """Host path of a file of this container."""
        return os.path.join(self.directory, name)

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def containers_root() -> str:
    return os.path.join(paths.state_root(), "containers")


def names_root() -> str:
    return os.path.join(paths.state_root(), "names")


def new(name: str) -> Container:
    """A new container with a record. `name`: "" for one after the id. Raises AlreadyExists if the name is taken."""
    container, lock = begin(name)
    os.close(lock)
    return container


def begin(name: str) -> tuple[Container, int]:
    """The same, and a descriptor that says "somebody is making this container" as long as it is open.

    Whoever is killed from here on leaves a container that can be listed and removed.
    """
    os.makedirs(names_root(), mode=0o711, exist_ok=True)
    os.makedirs(containers_root(), mode=0o711, exist_ok=True)
    with _names_locked():  # between a look at a name and taking it nobody else may do the same
        _sweep()
        container_id = os.urandom(ID_BYTES).hex()
        container = Container(id=container_id, name=name or container_id, created=time.time())
        _refuse_taken(container.name)
        os.mkdir(container.directory, 0o711)
        try:
            lock_fd = lock(container)
            save(container)
            os.symlink(container_id, os.path.join(names_root(), container.name))
        except BaseException:
            _remove(container)
            raise
        return container, lock_fd


def _sweep() -> None:
    """Directories whose makers were killed before they had written a record."""
    for entry in os.scandir(containers_root()):
        try:
            os.rmdir(entry.path)
        except OSError:  # a container, or one that is being removed
            pass


def _refuse_taken(name: str) -> None:
    """Raise AlreadyExists, unless what `name` meant is gone."""
    holder = _id_of_name(name)
    if holder and os.path.isdir(os.path.join(containers_root(), holder)):
        raise AlreadyExists(f"the name {name} is in use by container {holder}", hint=f"hako rm {name} frees it")
    _unlink(os.path.join(names_root(), name))


def lock(container: Container) -> int:
    """A descriptor as `begin` gives it."""
    fd = os.open(container.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def is_locked(container: Container) -> bool:
    """Whether somebody holds the `lock`."""
    try:
        fd = os.open(container.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def save(container: Container) -> None:
    """Write the record, whole or not at all."""
    write_json(container.file(RECORD), container.as_dict())


def all() -> list[Container]:
    """Every container that has a record, oldest first."""
    try:
        ids = os.listdir(containers_root())
    except FileNotFoundError:
        return []
    found = (load(container_id) for container_id in ids)
    return sorted((c for c in found if c is not None), key=lambda c: (c.created, c.id))


def load(container_id: str) -> Container | None:
    """The container with this id, if it has a whole record."""
    fields = read_json(os.path.join(containers_root(), container_id, RECORD))
    if fields is None or fields.get("id") != container_id:
        return None
    return Container(**fields)


def find(reference: str) -> Container:
    """The container with this name, id or unique beginning of an id. Raises NotFound."""
    by_name = _id_of_name(reference) if _is_component(reference) else ""
    container = load(by_name or reference) if _is_component(reference) else None
    if container is not None:
        return container
    matches = [c for c in all() if reference and c.id.startswith(reference)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise NotFound(f"{reference!r} could be {' or '.join(c.name for c in matches)}")
    raise NotFound(f"no such container: {reference}", hint="hako list -a shows them")


def forget(container: Container) -> None:
    """Remove the container's directory and name. What is mounted below it must be unmounted before."""
    _refuse_mounts(container.directory)
    if not os.path.isdir(names_root()):
        return
    with _names_locked():
        _remove(container)


def _remove(container: Container) -> None:
    import shutil

    shutil.rmtree(container.directory, ignore_errors=True)
    if _id_of_name(container.name) == container.id:
        _unlink(os.path.join(names_root(), container.name))


def read_json(path: str) -> dict[str, Any] | None:
    """The object in the file; None if it is not there or a crash left it half-written."""
    import json

    try:
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: str, value: object) -> None:
    """Replace the file in one step."""
    import json

    draft = f"{path}.{os.getpid()}.new"
    try:
        with open(draft, "w", encoding="utf-8") as stream:
            json.dump(value, stream)
        os.replace(draft, path)
    except OSError as exc:
        _unlink(draft)
        raise OSError(exc.errno, exc.strerror, path) from exc  # write(2) does not say of what


@contextmanager
def _names_locked() -> Iterator[None]:
    fd = os.open(names_root(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _id_of_name(name: str) -> str:
    try:
        return os.readlink(os.path.join(names_root(), name))
    except OSError:
        return ""


def _is_component(text: str) -> bool:
    return bool(text) and "/" not in text and "\0" not in text and text not in (".", "..")


def _refuse_mounts(directory: str) -> None:
    """A recursive removal must never run into a mount."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        points = [line.split(" ")[4] for line in stream]
    inside = [point for point in points if point == directory or point.startswith(f"{directory}/")]
    if inside:
        raise HakoError(f"{inside[0]} is still mounted", step="remove container")


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
