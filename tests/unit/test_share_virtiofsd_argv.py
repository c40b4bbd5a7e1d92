"""virtiofsd's command lines, of both daemons."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.config import ShareConfig
from shim.errors import NotFound
from shim.share import virtiofsd
from shim.share.virtiofsd import Daemon
from tests.framework import golden

KINDS = {"c": Daemon("/usr/lib/qemu/virtiofsd", "c"), "rust": Daemon("/usr/libexec/virtiofsd", "rust")}


@pytest.mark.parametrize("kind", KINDS)
def test_command_line(kind: str) -> None:
    """The whole command line of each daemon is what was reviewed."""
    argv = virtiofsd.command(KINDS[kind], "/run/hako/pods/x/share", 7, ShareConfig(), 65536)
    golden.check(f"virtiofsd/{kind}.txt", golden.command_lines(argv))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", ["fitting", "auto", "always", "never"])
def test_always_sandboxed(kind: str, cache: str) -> None:
    """No setting leads to a daemon without namespace sandbox or with seccomp off (CVE-2026-47243)."""
    argv = " ".join(virtiofsd.command(KINDS[kind], "/d", 3, ShareConfig(cache=cache), 10))  # type: ignore[arg-type]
    assert "sandbox=namespace" in argv
    assert "seccomp=none" not in argv
    assert ("cache=none" in argv) == (kind == "c" and cache == "never")


@pytest.mark.parametrize("own_files", [False, True])
def test_what_fits_is_settled_and_what_was_asked_for_stays(own_files: bool) -> None:
    """For files that nobody else writes "always", for all others the second; said by name, each is what it is."""
    found = virtiofsd.settled(ShareConfig(thread_pool_size=3), own_files=own_files)
    assert (found.cache, found.thread_pool_size) == ("always" if own_files else "auto", 3)
    for cache in ("auto", "always", "never"):
        assert virtiofsd.settled(ShareConfig(cache=cache), own_files=own_files).cache == cache


def test_extra_arguments_come_last() -> None:
    """[share] extra_args can override what we chose."""
    argv = virtiofsd.command(KINDS["rust"], "/d", 3, ShareConfig(extra_args=("--cache=metadata",)), 10)
    assert argv[-1] == "--cache=metadata"


def test_missing_daemon_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a daemon the error says what to install."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(virtiofsd, "PLACES", (str(tmp_path / "none"),))
    with pytest.raises(NotFound, match="apt-get install virtiofsd"):
        virtiofsd.find()


def test_file_limit_stays_within_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CAP_SYS_RESOURCE a daemon that asks for more than the hard limit would not start."""
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 20000))
    assert virtiofsd.file_limit() == 20000
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, resource.RLIM_INFINITY))
    assert virtiofsd.file_limit() == 1_000_000
