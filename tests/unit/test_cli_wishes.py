"""`hako run`'s options as wishes."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.cli import wishes
from shim.cli.options import UsageError, parse


def _read(*argv: str) -> wishes.Wishes:
    return wishes.read(parse(wishes.OPTIONS, list(argv), end_at_first_word=True))


def test_nothing_said() -> None:
    """An image alone: NAT, attached, kept, the image's own command."""
    found = _read("busybox")
    assert (found.image, found.command, found.network) == ("busybox", [], "nat")
    assert not (found.terminal or found.interactive or found.detach or found.remove)
    assert found.entrypoint is None


def test_everything_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option arrives in its field, in its type."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "env").write_text("A=1\nB=2\n")
    found = _read(
        "-d", "-i", "-t", "--rm", "--name", "web", "-e", "B=3", "--env-file", "env", "-v", f"{tmp_path}:/x:ro",
        "-w", "/w", "-u", "1:2", "--entrypoint", "/e", "-h", "host", "--read-only", "--cpus", "1.5", "-m", "64m",
        "--cap-add", "NET_ADMIN", "--cap-drop", "ALL", "--security-opt", "seccomp=unconfined", "--network", "none",
        "--annotation", "k=v", "image", "cmd", "--rm",
    )  # fmt: skip
    assert found[:9] == ("image", "", ["cmd", "--rm"], "web", "host", True, True, True, True)
    assert found.env == ["A=1", "B=3"]
    assert (found.volumes[0].destination, found.volumes[0].read_only) == ("/x", True)
    assert found[11:17] == ("/w", "1:2", ["/e"], True, 1.5, 64 << 20)
    assert found[17:] == (["NET_ADMIN"], ["ALL"], "unconfined", False, "none", "", {"k": "v"})


def test_rootfs_takes_the_place_of_the_image(tmp_path: Path) -> None:
    """With --rootfs all words are the command."""
    found = _read("--rootfs", str(tmp_path), "sh", "-c", "true")
    assert (found.image, found.rootfs, found.command) == ("", str(tmp_path), ["sh", "-c", "true"])


def test_an_empty_entrypoint_is_none_of_the_image() -> None:
    """`--entrypoint ""` takes the image's away, as with docker."""
    assert _read("--entrypoint", "", "image", "sh").entrypoint == []


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "name an image"),
        (["--rootfs", "/none", "sh"], "no such directory"),
        (["-it", "image"], "not a terminal"),
        (["-w", "relative", "image"], "must be absolute"),
        (["--name", "a/b", "image"], "not a usable name"),
        (["--network", "host", "image"], "no such network"),
        (["--memory", "1k", "image"], "too little"),
    ],
)
def test_wrong_wishes_are_refused(argv: list[str], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is done, with the reason."""
    monkeypatch.setattr("shim.cli.terminal.is_terminal", lambda fd: False)
    with pytest.raises(UsageError, match=reason):
        _read(*argv)
