"""Fetching tools: the private apt configuration, the launcher, and who is asked first."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from shim import tools
from shim.errors import NotFound


def test_apt_configuration_touches_nothing_of_the_machine() -> None:
    """Every directory that apt writes to, and its sources, are below the private one."""
    text = tools.configuration("/private", check_date=True)
    settings = dict(line.rstrip(";").split(" ", 1) for line in text.splitlines())
    for name, value in settings.items():
        if name.startswith("Dir::"):
            assert value.strip('"').startswith(("/private", "/dev/null")), name
    assert settings["Acquire::Check-Valid-Until"] == '"true"'


def test_expired_lists_are_taken_only_when_asked() -> None:
    """The date check is off only in the second attempt; signatures are checked in both."""
    text = tools.configuration("/private", check_date=False)
    assert 'Acquire::Check-Valid-Until "false";' in text
    assert "AllowUnauthenticated" not in text


def test_backports_stand_on_their_release() -> None:
    """Packages that were not carried over come from the release below; other suites stand alone."""
    mirror = tools.Archive("http://mirror/debian", "/key")
    assert tools.sources("sid", mirror) == "deb [signed-by=/key] http://mirror/debian sid main\n"
    both = [line.split()[3] for line in tools.sources("bookworm-backports", mirror).splitlines()]
    assert both == ["bookworm-backports", "bookworm"]


@pytest.mark.parametrize(("codename", "wanted"), [("bookworm", True), ("trixie", False)])
def test_backports_are_for_one_release(monkeypatch: pytest.MonkeyPatch, codename: str, wanted: bool) -> None:
    """Debian 13 has QEMU 10 itself and must not get that of 12; tools of sid are for both."""
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"VERSION_CODENAME": codename})
    assert tools.is_for_this_release("qemu10") is wanted
    assert tools.is_for_this_release("containerd2")


def test_launcher_is_quoted() -> None:
    """A cache directory with a space in its name still gives a launcher that runs."""
    text = tools.launcher("/a b", "usr/bin/x")
    loader = "'/a b/libraries/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2'"
    assert text.startswith(f"#!/bin/sh\nexec {loader} --library-path ")
    assert text.endswith("'/a b/usr/bin/x.bin' \"$@\"\n")


def test_unknown_tool_names_the_known_ones() -> None:
    """A typing error is answered with what there is."""
    with pytest.raises(NotFound, match="vhost-device-vsock"):
        tools.ensure("vhost-device-sock")


def test_configured_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the configuration names wins over what was fetched; nothing there at all is None."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path))
    assert tools.find("containerd2") is None
    fetched = tmp_path / "tools/containerd2/usr/bin/containerd"
    fetched.parent.mkdir(parents=True)
    fetched.touch(mode=0o755)
    assert tools.find("containerd2") == str(fetched)
    assert tools.find("containerd2", ("", "/bin/true")) == "/bin/true"
