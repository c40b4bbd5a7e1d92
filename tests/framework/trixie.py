"""`make test-trixie`: run `make test` in a fresh Debian 13 on this machine.

Owns: the chroot below build/, its base system (made once by mmdebstrap from the machine's own mirror, kept
as an archive in the cache) and everything mounted in it. All of that happens in mount and pid namespaces of
its own, so that whatever ends this process takes mounts and processes with it.
Usage: python -m tests.framework.trixie [make arguments...]     such as test TESTS=tests/unit
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from shim import paths, tools

REPOSITORY = Path(__file__).resolve().parents[2]
SUITE = "trixie"
# What somebody has who follows the README on a fresh machine.
BASE = ("ca-certificates", "make", "git")
# How this machine reaches its package indexes (certificates, mirrors) is valid in the chroot too.
PASSED = ("PIP_", "SSL_CERT_", "REQUESTS_CA_", "CURL_CA_", "http_proxy", "https_proxy", "no_proxy",
"HAKO_TEST_")


def main(arguments: Sequence[str]) -> int:
    """Enter the namespaces (the first call), then make the chroot and run make in it (the second)."""
    if os.environ.get("HAKO_TRIXIE") != "inside":
        return _again_in_namespaces(arguments)
    with _chroot(_base()) as root:
        print(f"make {' '.join(arguments)}, in Debian 13, {root}", flush=True)
        command = ["chroot", str(root), "make", "-C", "/root/hako", *arguments]
        return subprocess.run(command, env=_environment(), check=False).returncode


def _again_in_namespaces(arguments: Sequence[str]) -> int:
    enter = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    command = [*enter, sys.executable, "-m", "tests.framework.trixie", *arguments]
    return subprocess.run(command, env=os.environ | {"HAKO_TRIXIE": "inside"}, check=False).returncode


def _base() -> Path:
    """The archive of the base system, made if the cache has none for the same packages and mirror."""
    mirror = tools.archive().uri
    key = hashlib.sha256(" ".join((SUITE, mirror, *BASE)).encode()).hexdigest()[:12]
    base = Path(paths.cache_root()) / SUITE / f"base-{key}.tar"
    if not base.exists():
        base.parent.mkdir(parents=True, exist_ok=True)
        draft = base.with_name(f".{os.getpid()}-{base.name}")
        options = ["--variant=apt", f"--include={','.join(BASE)}", *_apt_options()]
        command = ["mmdebstrap", *options, SUITE, str(draft), mirror]
        subprocess.run(command, check=True, timeout=900)
        draft.rename(base)
    return base


def _apt_options() -> list[str]:
    """The machine's own ways to the mirror (a proxy, a clock that is off), for mmdebstrap and inside."""
    files = sorted(Path("/etc/apt/apt.conf.d").glob("*"))
    return [f"--aptopt={file}" for file in files if "Acquire::" in file.read_text(errors="replace")]


@contextlib.contextmanager
def _chroot(base: Path) -> Iterator[Path]:
    """A chroot with this checkout in /root/hako and a cache of its own; removed when done, mounts first."""
    where = REPOSITORY / "build"
    where.mkdir(exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="trixie-", dir=where))
    try:
        subprocess.run(["tar", "-xpf", base, "-C", root, "--xattrs"], check=True, timeout=300)
        _populate(root)
        _mount(root, base.parent / "cache")
        yield root
    finally:
        _unmount(root)
        shutil.rmtree(root)


def _populate(root: Path) -> None:
    listing = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, check=True, capture_output=True, timeout=60).stdout.decode().split("\0")
    for name in filter(None, names):
        source, target = REPOSITORY / name, root / "root/hako" / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    # Certificates that only this machine trusts (a proxy of a company or of CI), and where its names are
    # resolved.
    for file in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", file).exists():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).unlink(missing_ok=True)
            shutil.copyfile(Path("/", file), root / file)


def _mount(root: Path, cache: Path) -> None:
    """/proc of our own pid namespace; /dev and /sys as they are; fresh /run and /tmp; a cache that stays."""
    cache.mkdir(exist_ok=True)
    target = root / "var/cache/hako"
    target.mkdir(parents=True)
    for words in (
        ["-t", "proc", "proc", f"{root}/proc"],
        ["--rbind", "/sys", f"{root}/sys"],
        ["--rbind", "/dev", f"{root}/dev"],
        ["-t", "tmpfs", "run", f"{root}/run"],
        ["-t", "tmpfs", "tmp", f"{root}/tmp"],
        ["--bind", str(cache), str(target)],
    ):
        subprocess.run(["mount", *words], check=True, timeout=30)


def _unmount(root: Path) -> None:
    """Nothing may be mounted below `root` when it is removed: rmtree would go into it."""
    inside = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((p for p in inside if p.startswith(f"{root}/")), key=len, reverse=True):
        subprocess.run(["umount", "--lazy", point], check=True, timeout=30)
    if f" {root}/" in Path("/proc/self/mountinfo").read_text():
        raise RuntimeError(f"something is still mounted below {root}; it was not removed")


def _environment() -> dict[str, str]:
    passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED) and k != "PIP_FIND_LINKS"}
    return passed | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "TERM":
    "dumb"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
