"""HOME that the host finds in the container's root: as the guest's agent would, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agent.api import oci_pb2
from shim.oci import spec as oci
from shim.sandbox import home

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nshort:x:7\nnone:x:8:8:::\nodd:x:9:9:\xff:/\xff:\nnul:x:10:10::/a\0b:\n"
PASSWD += b"www:x:33:33::/var/www:\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With a passwd."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(PASSWD)
    return tmp_path


def found(root: Path, uid: int = 0, env: tuple[str, ...] = (), username: str = "", **parts: Any) -> list[str]:
    """The environment afterwards."""
    spec = oci.Spec(oci_version="1.0.0", **parts)
    process = oci_pb2.Process(Env=env, User=oci_pb2.User(UID=uid, Username=username))
    home.complete(process, spec, str(root))
    return list(process.Env)


@pytest.mark.parametrize(("uid", "home"), [(0, "/root"), (33, "/var/www"), (7, "/"), (8, "/"), (4000, "/")])
def test_it_is_found(root: Path, uid: int, home: str) -> None:
    """The root's, another's, that of an entry which is cut off or has none, nobody's."""
    assert found(root, uid, ("A=b",)) == ["A=b", f"HOME={home}"]


def test_without_a_passwd(tmp_path: Path) -> None:
    """As for a user without an entry."""
    assert found(tmp_path) == ["HOME=/"]


@pytest.mark.parametrize("uid", [9, 10])
def test_what_no_environment_holds_is_left_to_the_guest(root: Path, uid: int) -> None:
    """Not UTF-8, which the message cannot hold; a NUL."""
    assert found(root, uid) == []


def test_what_is_not_plain_is_left_to_the_guest(root: Path) -> None:
    """A user by name, hooks that may change the file, another file mounted over it."""
    assert found(root, username="www") == []
    assert found(root, hooks=oci.Hooks()) == []
    for destination in ("/etc/passwd", "/etc/", "/usr/../etc/passwd"):
        assert found(root, mounts=(oci.Mount(destination=destination),)) == []
    assert found(root, mounts=(oci.Mount(destination="/etc/hosts"),)) == ["HOME=/root"]


def test_it_is_not_looked_up_where_it_is_said(root: Path) -> None:
    """Also if it is empty."""
    assert found(root, env=("HOME=",)) == ["HOME="]


@pytest.mark.parametrize("kind", ["fifo", "directory", "link out", "loop"])
def test_a_hostile_file_is_left_to_the_guest(tmp_path: Path, kind: str) -> None:
    """Nothing outside the root is read, and nothing is waited for; a link that leads out stays inside."""
    path = tmp_path / "etc/passwd"
    path.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("../../../../../../etc/passwd" if kind == "loop" else "/etc/shadow")
    assert found(tmp_path) == (["HOME=/"] if kind == "link out" else [])
