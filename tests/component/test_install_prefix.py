"""`make install` and `make uninstall` below a PREFIX of the test's own, with the real files and commands."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import paths
from shim.errors import HakoError
from shim.install import launcher, prefix
from tests.framework.importgraph import REPOSITORY

USER = "hako-test-user"


def _everything(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def _run(*argv: str | Path, cwd: Path | str = "/") -> subprocess.CompletedProcess[str]:
    """Run with no environment: what is needed must be baked in."""
    return subprocess.run(
        list(map(str, argv)), env={}, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def guest(tmp_path: Path) -> dict[str, str]:
    """Files that stand for kernel and tools: the installer only copies them."""
    (tmp_path / "vmlinux").write_text("kernel")
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool/program").write_text("tool")
    return {"guest/vmlinux": str(tmp_path / "vmlinux"), "tools/x": str(tmp_path / "tool")}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[prefix.Target]:
    """A PREFIX that does not exist yet, and state and cache of its own."""
    monkeypatch.setenv("HAKO_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path / "cache"))
    yield prefix.target(str(tmp_path / "usr"), "")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An installation that several tests only look at."""
    directory = tmp_path_factory.mktemp("installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAKO_STATE_DIR", str(directory / "state"))
        prefix.install(prefix.target(str(directory / "usr"), ""), str(REPOSITORY), {})
    yield directory / "usr"


def _install(place: prefix.Target, extra: dict[str, str] | None = None) -> None:
    prefix.install(place, str(REPOSITORY), extra or {}, compiled=False)


def test_the_commands_run_without_the_checkout(installed: Path) -> None:
    """Both commands work with an empty environment, and their code is below PREFIX."""
    done = _run(installed / "bin/hako", "version")
    assert done.returncode == 0, done.stderr
    assert f"{installed}/lib/hako\n" in done.stdout
    assert "Version" in _run(installed / "bin/containerd-shim-hako-v2", "-v").stdout


def test_nothing_of_the_checkout_is_named(installed: Path) -> None:
    """No installed file has the checkout's path in it, compiled ones included: it may go away."""
    found = [
        path
        for path in installed.rglob("*")
        if path.is_file() and str(REPOSITORY).encode() in path.read_bytes()
    ]
    assert found == []


def test_code_is_compiled_and_up_to_date(installed: Path) -> None:
    """A start does not compile: every module has its bytecode, taken from the file that is there."""
    before = _everything(installed)
    assert _run(installed / "bin/hako", "list", "-a").returncode == 0
    assert _everything(installed) == before
    assert "lib/hako/shim/__pycache__/config.cpython" in " ".join(before)


def test_the_shims_file_runs_alone(installed: Path, tmp_path: Path) -> None:
    """Copied to another directory, under another name, the shim's file still is the shim."""
    copy = tmp_path / "containerd-shim-other-v2"
    shutil.copy(installed / "bin/containerd-shim-hako-v2", copy)
    done = _run(copy, "-v", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_python_is_told(tmp_path: Path) -> None:
    """After an upgrade of the distribution's Python, the command says what to do."""
    text = launcher.text("hako", "/none", "/none")
    (tmp_path / "hako").write_text(text.replace("!= (3, ", "!= (2, "))
    (tmp_path / "hako").chmod(0o755)
    done = _run(tmp_path / "hako")
    assert done.returncode == 1 and "make install" in done.stderr


def test_uninstall_leaves_nothing(place: prefix.Target, guest: dict[str, str], tmp_path: Path) -> None:
    """Everything that install made is gone: files, directories, state, caches."""
    before = _everything(tmp_path)
    _install(place, guest)
    assert Path(place.home, "guest/vmlinux").read_text() == "kernel"
    assert Path(place.home, "tools/x/program").read_text() == "tool"
    assert _run(Path(place.bin, "hako"), "list").returncode == 0
    (tmp_path / "cache/oci").mkdir(parents=True)
    assert prefix.uninstall(place, keep_cache=False) == []
    assert _everything(tmp_path) == before


def test_what_was_there_before_stays(place: prefix.Target, tmp_path: Path) -> None:
    """Directories that held something before, and other people's files, are left alone."""
    Path(place.bin).mkdir(parents=True)
    Path(place.bin, "other").write_text("other")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/mine").write_text("mine")
    _install(place)
    assert prefix.uninstall(place, keep_cache=False) == [str(tmp_path / "cache")]
    assert Path(place.bin, "other").exists() and (tmp_path / "cache/mine").exists()


def test_installing_again_replaces(place: prefix.Target, guest: dict[str, str], tmp_path: Path) -> None:
    """A second install takes the first one's place, and uninstall still knows what the first one made."""
    before = _everything(tmp_path)
    _install(place, guest)
    _install(place)
    assert not Path(place.home, "guest/vmlinux").exists()
    prefix.uninstall(place, keep_cache=False)
    assert _everything(tmp_path) == before


def test_a_failed_install_leaves_the_old_one(place: prefix.Target, guest: dict[str, str]) -> None:
    """When a file is missing, what was installed before still runs and no draft is left."""
    _install(place, guest)
    with pytest.raises(FileNotFoundError):
        _install(place, {"guest/vmlinux": "/none"})
    assert _run(Path(place.bin, "hako"), "version").returncode == 0
    assert sorted(os.listdir(os.path.dirname(place.home))) == ["hako"]


def test_containers_keep_it(place: prefix.Target) -> None:
    """With a container there, uninstall refuses and says how to remove it."""
    from shim.byhand import registry

    _install(place)
    made = registry.new("web")
    registry.save(made)
    os.makedirs(os.path.join(paths.pods_root(), "k8s.io", "pod1"))
    with pytest.raises(HakoError, match=r"hako rm -f") as refused:
        prefix.uninstall(place, keep_cache=False)
    assert made.id in str(refused.value) and "pod1" in str(refused.value) and "k8s.io" not in str(refused.value)
    assert _run(Path(place.bin, "hako"), "version").returncode == 0


def test_uninstall_of_nothing(place: prefix.Target) -> None:
    """Where hako is not installed, nothing is removed and it is said."""
    with pytest.raises(HakoError, match="not installed"):
        prefix.uninstall(place, keep_cache=False)


def test_the_administrators_configuration_is_kept(place: prefix.Target, tmp_path: Path) -> None:
    """An unchanged file in the configuration directory goes; a changed one survives upgrade and uninstall."""
    confdir = tmp_path / "etc"
    place = place._replace(confdir=str(confdir))
    _install(place)
    prefix.uninstall(place, keep_cache=False)
    assert not confdir.exists()
    _install(place)
    (confdir / "configuration.toml").write_text("# mine\n")
    _install(place)
    assert prefix.uninstall(place, keep_cache=False) == [str(confdir / "configuration.toml")]
    assert (confdir / "configuration.toml").read_text() == "# mine\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="users can only be made by root: sudo make test")
def test_the_system_user_comes_and_goes(place: prefix.Target) -> None:
    """The user is made without a shell and a home, and removed by the installation that made it only."""
    place = place._replace(user=USER)
    try:
        _install(place)
        entry = pwd.getpwnam(USER)
        assert (entry.pw_shell, os.path.exists(entry.pw_dir), entry.pw_uid < 1000) == (
            "/usr/sbin/nologin",
            False,
            True,
        )
        _install(place)
        prefix.uninstall(place, keep_cache=False)
        with pytest.raises(KeyError):
            pwd.getpwnam(USER)
    finally:
        subprocess.run(["userdel", USER], check=False, capture_output=True, timeout=30)
