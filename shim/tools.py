"""Programs that the distribution's release does not have, fetched from another suite of its own mirror.

Owns: cache/tools/NAME/ (one unpacked tool each) and cache/tools/.apt-SUITE/ (a private apt: its own lists
and sources; the machine's are only read, for mirror and keyring). Must not know: what the tools are for.
Called by `python -m shim.tools --ensure NAME`, which the installer and the tests use, and by whoever needs
a tool's path (`find`).

apt verifies the packages by the suite's signature. A tool whose C library is newer than the machine's gets
its libraries beside it and a launcher that runs it with them.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from shim import paths
from shim.errors import HakoError, NotFound
from shim.process import ENVIRONMENT, CommandFailed, run

FETCH_TIMEOUT = 300.0  # seconds for one apt command: lists of 11 MB, packages of 30 MB
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Tool(NamedTuple):
    """A program to fetch: `program` is its path inside the packages, `check` arguments that prove it runs.

    Of a suite of backports also what that is built for is there: packages that were not carried over.
    """

    program: str
    packages: tuple[str, ...]
    check: tuple[str, ...] = ("--version",)
    libraries: tuple[str, ...] = ()
    suite: str = "sid"


TOOLS = {
    "vhost-device-vsock": Tool("usr/bin/vhost-device-vsock", ("vhost-device-vsock",)),
    "containerd2": Tool("usr/bin/containerd", ("containerd",)),
    "virtiofsd-rust": Tool(
        "usr/libexec/virtiofsd",
        ("virtiofsd",),
        libraries=("libc6", "libgcc-s1", "libcap-ng0", "libseccomp2"),
    ),
    # What Debian 13 has; its firmware comes from the release. Needs no library that its predecessor does not.
    "qemu10": Tool(
        "usr/bin/qemu-system-x86_64",
        ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"),
        suite="bookworm-backports",
    ),
    # The distribution's own package would start a registry on port 5000 when it is installed.
    "docker-registry": Tool("usr/bin/docker-registry", ("docker-registry",)),
}


class Archive(NamedTuple):
    """Where the machine's own apt finds its distribution."""

    uri: str
    keyring: str


def find(name: str, places: tuple[str, ...] = ()) -> str | None:
    """Path of tool `name`: one of `places` (configured), on PATH, installed beside us, or fetched before."""
    installed = os.path.join(paths.install_root(), "tools", name, TOOLS[name].program)
    fetched = os.path.join(paths.cache_dir("tools"), name, TOOLS[name].program)
    on_path = shutil.which(name, path=ENVIRONMENT["PATH"])
    for place in (*places, on_path, installed, fetched):
        if place and os.access(place, os.X_OK):
            return place
    return None


def is_for_this_release(name: str) -> bool:
    """False for what is a backport to another release of the distribution; the newer one has it itself."""
    release, backports, _ = TOOLS[name].suite.partition("-backports")
    return not backports or platform.freedesktop_os_release().get("VERSION_CODENAME") == release


def ensure(name: str) -> str:
    """Path of the program of tool `name` in the cache, fetched if it is not there.

    Raises NotFound for a name that is not in TOOLS and CommandFailed if apt cannot fetch it or it does not
    run here.
    """
    tool = TOOLS.get(name)
    if tool is None:
        raise NotFound("no such tool", object=name, hint=f"known: {', '.join(sorted(TOOLS))}")
    directory = os.path.join(paths.cache_dir("tools"), name)
    program = os.path.join(directory, tool.program)
    os.makedirs(paths.cache_dir("tools"), exist_ok=True)
    with _locked(directory + ".lock"):
        if not os.access(program, os.X_OK):
            _install(tool, directory)
    return program


@contextmanager
def _locked(path: str) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _install(tool: Tool, directory: str) -> None:
    """Fetch, unpack and try the tool, then move it to `directory` in one step."""
    new = f"{directory}.new"
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)
    apt = _apt(tool.suite)
    apt.unpack(tool.packages, new)
    if not _runs(tool, new):
        _bring_libraries(apt, tool, new, directory)
    os.rename(new, directory)


_APTS: dict[str, Apt] = {}


def _apt(suite: str) -> Apt:
    """The same one for several tools, which fetches its lists once."""
    apt = Apt(suite)
    return _APTS.setdefault(apt.directory, apt)


def _runs(tool: Tool, directory: str) -> bool:
    """Whether the program runs with the machine's libraries; raises if not and none can be brought."""
    try:
        run([os.path.join(directory, tool.program), *tool.check], timeout=20)
    except CommandFailed:
        if not tool.libraries:
            raise
        return False
    return True


def _bring_libraries(apt: Apt, tool: Tool, new: str, directory: str) -> None:
    """Put the suite's libraries beside the program, and in its place a launcher that names them."""
    apt.unpack(tool.libraries, os.path.join(new, "libraries"))
    program = os.path.join(new, tool.program)
    os.rename(program, program + ".bin")
    with open(program, "w", encoding="utf-8") as stream:
        stream.write(launcher(directory, tool.program))
    os.chmod(program, 0o755)


def launcher(directory: str, program: str) -> str:
    """Text of a launcher that runs `program` with the libraries below `directory`; pure."""
    root = os.path.join(directory, "libraries", "usr", "lib")
    libraries = os.path.join(root, "x86_64-linux-gnu")
    loader = os.path.join(libraries, "ld-linux-x86-64.so.2")
    command = [loader, "--library-path", libraries, os.path.join(directory, program + ".bin")]
    import shlex

    return f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'


class Apt:
    """A private apt for one suite, with its own state, cache and sources."""

    def __init__(self, suite: str) -> None:
        self._suite = suite
        self.directory = os.path.join(paths.cache_dir("tools"), f".apt-{suite}")
        self._environment = {**ENVIRONMENT, "APT_CONFIG": os.path.join(self.directory, "apt.conf")}
        self._updated = False

    def unpack(self, packages: tuple[str, ...], target: str) -> None:
        """Fetch `packages` and unpack them into directory `target`; nothing of them is run or installed."""
        self._update()
        archives = os.path.join(self.directory, "fetched")
        shutil.rmtree(archives, ignore_errors=True)
        os.makedirs(archives)
        self._apt(["download", "-y", "-t", self._suite, *packages], archives)
        os.makedirs(target, exist_ok=True)
        for name in sorted(os.listdir(archives)):
            run(["dpkg-deb", "-x", os.path.join(archives, name), target], timeout=60)
        shutil.rmtree(archives)

    def _update(self) -> None:
        """Fetch the suite's lists once; a mirror that stands still has well-signed ones that have expired."""
        if self._updated:
            return
        self._configure(archive(), check_date=True)
        try:
            self._apt(["update"], self.directory)
        except CommandFailed as exc:
            if "is expired" not in exc.stderr:
                raise
            print(
                f"hako: the mirror's lists of {self._suite} are old; taking them by signature alone",
                file=sys.stderr,
            )
            self._configure(archive(), check_date=False)
            self._apt(["update"], self.directory)
        self._updated = True

    def _configure(self, source: Archive, *, check_date: bool) -> None:
        for name in ("lists/partial", "archives/partial"):
            os.makedirs(os.path.join(self.directory, name), exist_ok=True)
        for name, text in (
            ("apt.conf", configuration(self.directory, check_date=check_date)),
            ("sources.list", sources(self._suite, source)),
            ("status", ""),
        ):
            with open(os.path.join(self.directory, name), "w", encoding="utf-8") as stream:
                stream.write(text)

    def _apt(self, words: list[str], directory: str) -> None:
        command = ["env", f"--chdir={directory}", "apt-get", "-q", "--error-on=any", *words]
        if words[0] != "update":
            command.remove("--error-on=any")
        run(command, timeout=FETCH_TIMEOUT, env=self._environment)


def configuration(directory: str, *, check_date: bool) -> str:
    """apt.conf of a private apt whose everything is below `directory`; pure."""
    values = {
        "Dir::State": directory,
        "Dir::State::lists": f"{directory}/lists",
        "Dir::State::status": f"{directory}/status",
        "Dir::Cache": directory,
        "Dir::Cache::archives": f"{directory}/archives",
        "Dir::Etc::SourceList": f"{directory}/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Acquire::Check-Valid-Until": "true" if check_date else "false",
    }
    return "".join(f'{name} "{value}";\n' for name, value in values.items())


def sources(suite: str, source: Archive) -> str:
    """sources.list for a suite, and for the release below it if it is one of backports; pure."""
    suites = dict.fromkeys((suite, suite.removesuffix("-backports")))
    return "".join(f"deb [signed-by={source.keyring}] {source.uri} {name} main\n" for name in suites)


def archive() -> Archive:
    """Mirror and keyring of the distribution, read from the machine's own apt configuration."""
    wanted = "$(ORIGIN)|$(COMPONENT)|$(SUITE)|$(REPO_URI)|$(SIGNED_BY)"
    lines = run(["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"], timeout=30).decode()
    for line in lines.splitlines():
        origin, component, suite, uri, keyring = line.split("|")
        if origin == "Debian" and component == "main" and "security" not in suite:
            return Archive(uri.rstrip("/"), keyring if os.path.isabs(keyring) else KEYRING)
    raise HakoError(
        "apt has no sources of Debian's main component", step="fetch tools", hint="run apt-get update"
    )


def main(words: list[str]) -> int:
    """`--ensure NAME...`: fetch what is missing and print one path per name."""
    if len(words) < 2 or words[0] != "--ensure":
        print(f"usage: python -m shim.tools --ensure {{{','.join(TOOLS)}}}...", file=sys.stderr)
        return 2
    try:
        for name in words[1:]:
            print(ensure(name))
    except HakoError as exc:
        print(f"hako: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
