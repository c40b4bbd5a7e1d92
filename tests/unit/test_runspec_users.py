"""Who `user[:group]` is in an image (shim/runspec/users.py), with files that want to lead elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim.runspec.users import ImageUser, UserError, resolve_user

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# comment
broken
web:x:33:44:w:/srv:/bin/sh
1000:x:7:7::/seven:/bin/sh
"""
GROUP = "root:x:0:\nweb:x:44:\nextra:x:55:root,web\nmore:x:66:web\n1001:x:8:\n"


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/passwd").write_text(PASSWD)
    (tmp_path / "root/etc/group").write_text(GROUP)
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ImageUser(0, 0, (0, 55), "/root")),
        ("root", ImageUser(0, 0, (0, 55), "/root")),
        ("0", ImageUser(0, 0, (0, 55), "/root")),
        ("web", ImageUser(33, 44, (44, 55, 66), "/srv")),
        ("33", ImageUser(33, 44, (44, 55, 66), "/srv")),
        ("web:extra", ImageUser(33, 55, (55,), "/srv")),
        ("web:99", ImageUser(33, 99, (99,), "/srv")),
        ("4711", ImageUser(4711, 0, (0,), "/")),
        ("4711:web", ImageUser(4711, 44, (44,), "/")),
        (":more", ImageUser(0, 66, (66,), "/root")),
        ("1000", ImageUser(7, 7, (7,), "/seven")),
        ("web:1001", ImageUser(33, 8, (8,), "/srv")),
    ],
)
def test_dockers_rules(rootfs: Path, text: str, expected: ImageUser) -> None:
    """Names win over numbers, numbers need no entry, the primary group is always among the supplementary
    ones.
    """
    assert resolve_user(str(rootfs), text) == expected


def test_unknown_names_are_errors(rootfs: Path) -> None:
    """A user or a group that is a name and has no entry is refused by name."""
    with pytest.raises(UserError, match="no user 'nobody'"):
        resolve_user(str(rootfs), "nobody")
    with pytest.raises(UserError, match="no group 'wheel'"):
        resolve_user(str(rootfs), "root:wheel")


def test_numbers_out_of_range_are_errors(rootfs: Path) -> None:
    """Ids beyond 31 bits, in the request or in the image's files, are refused."""
    for text in (str(2**31), f"0:{2**31}"):
        with pytest.raises(UserError, match="no user or group id"):
            resolve_user(str(rootfs), text)
    (rootfs / "etc/passwd").write_text("evil:x:-1:0::/:/bin/sh\n")
    with pytest.raises(UserError, match="'-1'"):
        resolve_user(str(rootfs), "evil")


def test_an_image_without_the_files_still_has_numbers(tmp_path: Path) -> None:
    """A root filesystem without /etc runs as root and as any number."""
    assert resolve_user(str(tmp_path), "") == ImageUser(0, 0, (0,), "/")
    assert resolve_user(str(tmp_path), "5:6") == ImageUser(5, 6, (6,), "/")


def test_links_of_the_image_do_not_lead_out_of_it(rootfs: Path) -> None:
    """An absolute or climbing link to passwd means the image's own file, never the host's."""
    outside = rootfs.parent / "secret"
    outside.write_text("host:x:1:1::/:/bin/sh\n")
    (rootfs / "usr").mkdir()
    (rootfs / "usr/passwd").write_text("inside:x:5:5::/:/bin/sh\n")
    for target, found in (
        ("/usr/passwd", 5),
        ("../../../usr/passwd", 5),
        (str(outside), None),
        ("../../secret", None),
    ):
        (rootfs / "etc/passwd").unlink()
        (rootfs / "etc/passwd").symlink_to(target)
        if found:
            assert resolve_user(str(rootfs), "inside").uid == found
        else:
            with pytest.raises(UserError):
                resolve_user(str(rootfs), "host")


def test_what_is_no_file_is_not_opened(rootfs: Path) -> None:
    """A FIFO in place of passwd neither blocks nor is read."""
    (rootfs / "etc/passwd").unlink()
    os.mkfifo(rootfs / "etc/passwd")
    with pytest.raises(UserError, match="no regular file"):
        resolve_user(str(rootfs), "root")
