"""Who `user[:group]` is in an image: its own passwd and group files, read without following anything out of
it.

Owns: their grammar and Docker's rules. Must not know: the host's users. Called by the CLI before the spec
is made, and by shim/sandbox/home.py.

Docker's rules: names and numbers both work; a number needs no entry; without a group it is that of the
entry, else 0; the supplementary groups are those that list the user, unless a group was given; the primary
group is always among them (CVE-2022-36109: a process without it could be denied less than its group is).
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from agent.linux import syscalls
from shim.errors import INVALID_ARGUMENT, HakoError

MAX_FILE = 4 * 1024 * 1024
MAX_ID = 2**31 - 1
STEP = "find user in image"


class UserError(HakoError):
    """The image has no such user or group, an id is out of range, or a file is none."""

    code = INVALID_ARGUMENT


class ImageUser(NamedTuple):
    """Numbers for the OCI spec, and the home directory ("/" if the image does not know the user)."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str


def resolve_user(rootfs: str, text: str) -> ImageUser:
    """Look up `text` ("" means root) in the root filesystem at this host path.

    Raises UserError: a name without an entry, an id out of range, a file that is no file.
    """
    user, _, group = text.partition(":")
    rows = _rows(rootfs, "etc/passwd", 7)
    row = _find(rows, user or "0", by_id=2)
    if row is None and user and not user.isdecimal():
        raise UserError(f"/etc/passwd has no user {user!r}", step=STEP, object=text)
    uid = _number(row[2] if row else user or "0", text)
    gid = _number(row[3], text) if row else 0
    groups = _rows(rootfs, "etc/group", 4)
    if group:
        gid, additional = _group(groups, group, text), []
    else:
        additional = _memberships(groups, row[0], text) if row else []
    home = row[5] if row and row[5].startswith("/") else "/"
    return ImageUser(uid, gid, tuple(dict.fromkeys([gid, *additional])), home)


def home_of(rootfs: str, uid: int) -> str:
    """The home directory of the first user with this number in the root filesystem at this host path; "/" without one.

    Raises UserError for a file that is none or holds what no environment can.
    """
    row = next((row for row in _rows(rootfs, "etc/passwd", 7) if row[2] == str(uid)), None)
    home = (row[5] if row else "") or "/"
    if "\0" in home:
        raise UserError("/etc/passwd has a home directory with a NUL in it", step=STEP, object=str(uid))
    return home


def _find(rows: list[list[str]], wanted: str, by_id: int) -> list[str] | None:
    """The first row with this name, else with this number in column `by_id`."""
    by_name = next((row for row in rows if row[0] == wanted), None)
    if by_name or not wanted.isdecimal():
        return by_name
    return next((row for row in rows if row[by_id].isdecimal() and int(row[by_id]) == int(wanted)), None)


def _group(rows: list[list[str]], group: str, text: str) -> int:
    row = _find(rows, group, by_id=2)
    if row is None and not group.isdecimal():
        raise UserError(f"/etc/group has no group {group!r}", step=STEP, object=text)
    return _number(row[2] if row else group, text)


def _memberships(rows: list[list[str]], user: str, text: str) -> list[int]:
    return [_number(row[2], text) for row in rows if user in row[3].split(",")]


def _number(value: str, text: str) -> int:
    if not value.isdecimal() or int(value) > MAX_ID:
        raise UserError(f"{value!r} is no user or group id", step=STEP, object=text)
    return int(value)


def _rows(rootfs: str, path: str, columns: int) -> list[list[str]]:
    """The lines of a passwd-like file with at least `columns` fields; a missing file has none."""
    found = []
    for line in _read(rootfs, path).decode("utf-8", "surrogateescape").splitlines():
        fields = line.strip().split(":")
        if len(fields) >= columns and not line.startswith("#"):
            found.append(fields)
    return found


def _read(rootfs: str, path: str) -> bytes:
    """A regular file of the image; symbolic links in it, absolute ones too, stay inside.

    It is looked at before it is opened: opening a device node of the image would reach the host's device.
    """
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
        found = syscalls.openat2(root, path, os.O_PATH, 0, resolve)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as exc:
        raise UserError(f"/{path}: {exc.strerror}", step=STEP, object=rootfs) from exc
    finally:
        os.close(root)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise UserError(f"/{path} is no regular file", step=STEP, object=rootfs)
        with open(f"/proc/self/fd/{found}", "rb") as file:
            return file.read(MAX_FILE)
    finally:
        os.close(found)
