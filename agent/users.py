"""Who the process runs as: uid, gid, groups, umask and home directory.

Owns: reading the container's own /etc/passwd and /etc/group without being led out of the container. Called by
agent.container: from_spec() before the fork, resolve() in the child once the container's root is its root.

Names reach the guest in Kata's StringUser (the image's USER, where the host could not read the image) or in
OCI's `username`. Numbers need no file, but the home directory does.
"""

from __future__ import annotations

import os
import stat

from agent.errors import StepError
from agent.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.api import agent_pb2, oci_pb2

MAX_FILE = 1 << 20
MAX_ID = (1 << 32) - 2
DEFAULT_UMASK = 0o022


class Identity:
    """A user as asked for; str entries are names, to be looked up in the container."""

    __slots__ = ("gid", "groups", "uid", "umask")

    def __init__(self, uid: int | str, gid: int | str | None, groups: list[int | str], umask: int) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.umask = umask


class User:
    """A user as the kernel takes it. `home` is "/" where passwd does not say."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def from_spec(user: oci_pb2.User, string_user: agent_pb2.StringUser | None = None) -> Identity:
    """The user of an OCI process. Names in `string_user`, then `username` ("user[:group]"), win."""
    umask = user.Umask if user.HasField("Umask") else DEFAULT_UMASK
    groups: list[int | str] = list(user.AdditionalGids)
    if string_user is not None and string_user.uid:
        groups += [_number_or_name(name) for name in string_user.additionalGids]
        gid = _number_or_name(string_user.gid) if string_user.gid else None
        return Identity(_number_or_name(string_user.uid), gid, groups, umask)
    if user.Username:
        name, _, group = user.Username.partition(":")
        return Identity(_number_or_name(name), _number_or_name(group) if group else None, groups, umask)
    return Identity(user.UID, user.GID, groups, umask)


def needs_files(identity: Identity) -> bool:
    """Whether the container's files must be read to know who this is (the home directory aside)."""
    return identity.gid is None or any(
        isinstance(each, str) for each in (identity.uid, identity.gid, *identity.groups)
    )


def resolve(identity: Identity, want_home: bool) -> User:
    """Look names and the home directory up under "/". Raises StepError for a name that is not there."""
    entry: list[str] = []
    if want_home or identity.gid is None or isinstance(identity.uid, str):
        entry = _find(_lines("/etc/passwd"), identity.uid, 7)
    if not entry and isinstance(identity.uid, str):
        raise _unknown("user", identity.uid)
    uid = identity.uid if isinstance(identity.uid, int) else _id(entry[2], "user", identity.uid)
    gid = identity.gid
    if gid is None:
        gid = _id(entry[3], "user", str(uid)) if entry else 0
    elif isinstance(gid, str):
        gid = _group(gid)
    groups = [each if isinstance(each, int) else _group(each) for each in identity.groups]
    return User(uid, gid, groups, entry[5] if entry and entry[5] else "/")


def _group(name: str) -> int:
    entry = _find(_lines("/etc/group"), name, 4)
    if not entry:
        raise _unknown("group", name)
    return _id(entry[2], "group", name)


def _find(lines: Iterable[str], who: int | str, columns: int) -> list[str]:
    """The first complete entry with this name or number; [] when there is none."""
    column, text = (0, who) if isinstance(who, str) else (2, str(who))
    for line in lines:
        fields = line.split(":")
        if len(fields) >= columns and fields[column] == text:
            return fields
    return []


def _number_or_name(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and int(text) <= MAX_ID else text


def _id(text: str, kind: str, name: str) -> int:
    number = _number_or_name(text)
    if isinstance(number, str):
        raise StepError("user", 0, detail=f"unable to find {kind} {name}: its entry has no valid id")
    return number


def _unknown(kind: str, name: str) -> StepError:
    file = "passwd" if kind == "user" else "group"
    return StepError("user", 0, detail=f"unable to find {kind} {name}: no matching entries in {file} file")


def _lines(path: str) -> list[str]:
    """The lines of a regular file of the container, at most MAX_FILE bytes of it; [] when there is none."""
    flags = (
        os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    )  # a FIFO or a tty planted there must not stop the agent's child
    try:
        fd = syscalls.openat2(syscalls.AT_FDCWD, path, flags, 0, syscalls.RESOLVE_NO_MAGICLINKS)
    except OSError:
        return []
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return []
        return os.read(fd, min(info.st_size, MAX_FILE)).decode("utf-8", "surrogateescape").split("\n")
    finally:
        os.close(fd)
