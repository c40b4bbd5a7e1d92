"""`make install` and `make uninstall`: hako under a PREFIX, independent of the checkout.

    PREFIX/bin/{hako,containerd-shim-hako-v2}    launchers with every path baked in
    PREFIX/lib/hako/{shim,agent}/                the code, compiled
    PREFIX/lib/hako/site/                        the libraries
    PREFIX/lib/hako/{guest,tools}/               what boots, and tools that the distribution lacks
    PREFIX/lib/hako/configuration.toml           the defaults, each key commented
    PREFIX/lib/hako/install.json                 what uninstall has to know
    /etc/hako/configuration.toml                 for the administrator, if PREFIX is /usr or /usr/local

Owns: these files and the system user. A new version is made beside the old one and takes its place by
renaming. Must not know: how the guest is made (checkout.py), how anything runs. Called by
install/__main__.py.
"""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import pwd
import shutil
import time
from typing import Any, NamedTuple

from shim import paths, process
from shim.errors import HakoError
from shim.install import launcher, libraries

POOL_TIMEOUT = 10.0
SYSTEM_PREFIXES = ("/usr", "/usr/local")
CONFIGURATION = "configuration.toml"
MANIFEST = "install.json"
CACHES = ("kernel", "image", "oci", "probe", "tools", "template", "apt", "fresh", "unfinished")


class Target(NamedTuple):
    """Where to install. `confdir` is "" where no file outside PREFIX is wanted; `user` "" for no system
    user."""

    prefix: str
    confdir: str
    user: str

    @property
    def home(self) -> str:
        return os.path.join(self.prefix, "lib", "hako")

    @property
    def bin(self) -> str:
        return os.path.join(self.prefix, "bin")


def target(prefix: str, user: str) -> Target:
    """The places for `prefix`, made absolute."""
    prefix = os.path.abspath(prefix)
    return Target(prefix, "/etc/hako" if prefix in SYSTEM_PREFIXES else "", user)


def install(place: Target, source: str, extra: dict[str, str], *, compiled: bool = True) -> None:
    """Copy the checkout `source` and the `extra` files and trees (path below lib/hako -> host path).

    Without `compiled` bytecode is made by the first use.
    """
    record: dict[str, Any] = _read_manifest(place)
    record["made_directories"] = record.get("made_directories", []) + _make_directories(place)
    draft = f"{place.home}.new"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        _fill(draft, source, extra)
        if compiled:
            # The compiled files carry the path that they will have, for tracebacks.
            compileall.compile_dir(draft, stripdir=draft, prependdir=place.home, quiet=2)
        record["configuration"] = _configure(place, source, record.get("configuration", ""))
        record["made_user"] = _make_user(place.user) or record.get("made_user", "")
        _write_manifest(draft, record)
        _replace(draft, place.home)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    launcher.write(place.bin, place.home, os.path.join(place.home, "site"))


def uninstall(place: Target, *, keep_cache: bool) -> list[str]:
    """Take away what `install` put at `place` and what hako made since; returns what was left on purpose."""
    if not os.path.exists(os.path.join(place.home, MANIFEST)):
        raise HakoError("hako is not installed there", step="uninstall", object=place.prefix)
    _refuse_while_used()
    _end_pool(place)
    record, left = _read_manifest(place), []
    for command in launcher.COMMANDS:
        _unlink(os.path.join(place.bin, command))
    left += _remove_configuration(place, record.get("configuration", ""))
    shutil.rmtree(place.home)
    _remove_user(record.get("made_user", ""))
    _remove_empty(paths.state_root())
    if place.confdir or "HAKO_CACHE_DIR" in os.environ:
        left += [paths.cache_root()] if keep_cache else _remove_caches()
    for directory in reversed(record.get("made_directories", [])):
        _rmdir(directory)
    return left


def _make_directories(place: Target) -> list[str]:
    """The directories that have to be made, outermost first."""
    made: list[str] = []
    for directory in (place.bin, os.path.dirname(place.home)):
        missing = []
        while not os.path.isdir(directory):
            missing.append(directory)
            directory = os.path.dirname(directory)
        for path in reversed(missing):
            os.mkdir(path)
            made.append(path)
    return made


def _fill(draft: str, source: str, extra: dict[str, str]) -> None:
    for package in ("shim", "agent"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(os.path.join(source, package), os.path.join(draft, package), ignore=ignore)
    libraries.copy(os.path.join(draft, "site"))
    for name, path in extra.items():
        _copy(path, os.path.join(draft, name))
    shutil.copyfile(_shipped_configuration(source), os.path.join(draft, CONFIGURATION))


def _copy(source: str, destination: str) -> None:
    os.makedirs(os.path.dirname(destination), exist_ok=True)
    if os.path.isdir(source):
        shutil.copytree(source, destination, symlinks=True)
    else:
        shutil.copy(source, destination)


def _replace(draft: str, home: str) -> None:
    old = f"{home}.old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.exists(home):
        os.rename(home, old)
    os.rename(draft, home)
    shutil.rmtree(old, ignore_errors=True)


def _shipped_configuration(source: str) -> str:
    return os.path.join(source, "configs", CONFIGURATION)


def _configure(place: Target, source: str, installed_hash: str) -> str:
    """Put the configuration into /etc unless the administrator changed it; the hash of what is ours there."""
    if not place.confdir:
        return ""
    path = os.path.join(place.confdir, CONFIGURATION)
    shipped = _hash(_shipped_configuration(source))
    if not os.path.exists(path) or _hash(path) == installed_hash:
        os.makedirs(place.confdir, exist_ok=True)
        shutil.copyfile(_shipped_configuration(source), path)
    return shipped


def _remove_configuration(place: Target, installed_hash: str) -> list[str]:
    path = os.path.join(place.confdir, CONFIGURATION)
    if not place.confdir or not os.path.exists(path):
        return []
    if _hash(path) != installed_hash:
        return [path]
    os.unlink(path)
    _rmdir(place.confdir)
    return []


def _make_user(user: str) -> str:
    """Make the system user that the VMM and the daemons run as; its name if it did not exist before."""
    if not user or _user_exists(user):
        return ""
    process.run(
        ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
         "--shell", "/usr/sbin/nologin", user],
        timeout=30,
    )  # fmt: skip
    return user


def _remove_user(user: str) -> None:
    if user and _user_exists(user):
        process.run(["userdel", user], timeout=30)


def _user_exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _refuse_while_used() -> None:
    """Containers, running or kept, are the user's to remove: `hako run`'s by id, engines' pods by namespace and id."""
    kept = set(paths.entries(os.path.join(paths.state_root(), "containers")))
    kept.update(sandbox for _namespace, sandbox in paths.pods())
    if kept:
        raise HakoError(
            f"there are still containers: {', '.join(sorted(kept))}",
            step="uninstall",
            hint="hako rm -f $(hako list -aq), and remove containerd's",
        )


def _end_pool(place: Target) -> None:
    """VMs that wait for pods end with the process that keeps them, which has the code in memory."""
    shim = os.path.join(place.bin, "containerd-shim-hako-v2")
    if not os.path.isdir(paths.spares_root()) or not os.access(shim, os.X_OK):
        return
    try:
        process.run([shim, "-id", "end", "pool"], POOL_TIMEOUT, env={**process.ENVIRONMENT, **_places()})
    except HakoError:  # what does not run can be taken away all the same
        return
    deadline = time.monotonic() + POOL_TIMEOUT
    while os.path.isdir(paths.spares_root()) and time.monotonic() < deadline:
        time.sleep(0.05)


def _places() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("HAKO_")}


def _remove_caches() -> list[str]:
    for kind in CACHES:
        shutil.rmtree(paths.cache_dir(kind), ignore_errors=True)
    _rmdir(paths.cache_root())
    return [paths.cache_root()] if os.path.exists(paths.cache_root()) else []


def _remove_empty(directory: str) -> None:
    """Remove a tree that holds nothing but directories and locks; anything else stays."""
    for path, _, files in os.walk(directory, topdown=False):
        if all(name.endswith("lock") for name in files):
            for name in files:
                _unlink(os.path.join(path, name))
            _rmdir(path)


def _read_manifest(place: Target) -> dict[str, Any]:
    try:
        with open(os.path.join(place.home, MANIFEST), encoding="utf-8") as stream:
            found: dict[str, Any] = json.load(stream)
            return found
    except FileNotFoundError:
        return {}


def _write_manifest(directory: str, record: dict[str, Any]) -> None:
    with open(os.path.join(directory, MANIFEST), "w", encoding="utf-8") as stream:
        json.dump(record, stream, indent=2)


def _hash(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _rmdir(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:  # it holds something that is not ours, or is gone
        pass
