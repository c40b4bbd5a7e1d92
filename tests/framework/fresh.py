"""`make test-trixie`, `make test-bookworm`: run `make test` in a fresh Debian 13 or 12 on this machine.

Owns: the system below build/, its base (made once by mmdebstrap from the machine's own mirror, kept as an
archive in the cache), a cache of its own that stays, and everything mounted in it. make runs in mount and pid
namespaces of its own, so that whatever ends this process takes mounts and processes with it.
Usage: python -m tests.framework.fresh SUITE [make arguments...]     such as trixie test TESTS=tests/unit
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
# What somebody has who follows the README on a fresh machine.
BASE = ("ca-certificates", "make", "git", "mount")
# How this machine reaches its package indexes (certificates, mirrors) is valid in there too.
PASSED = ("PIP_", "SSL_CERT_", "REQUESTS_CA_", "CURL_CA_", "http_proxy", "https_proxy", "no_proxy")
FIXED = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}

# Arguments: the new root, the cache, a command. A root that was only chrooted into would be no fresh machine: the kernel
# refuses user namespaces there (EPERM), and pivot_root(2), with which virtiofsd shuts itself in.
_INSIDE = """
root=$1 cache=$2
shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs run "$root/run"
mount -t tmpfs tmp "$root/tmp"
mkdir -p "$root/var/cache/hako" "$root/mnt/old"
mount --bind "$cache" "$root/var/cache/hako"
cd "$root"
pivot_root . mnt/old
umount -l /mnt/old
exec "$@"
"""


def main(arguments: Sequence[str]) -> int:
    """Make the root directory and run make in it; make's status."""
    if not arguments:
        print("usage: python -m tests.framework.fresh SUITE [make arguments...]", file=sys.stderr)
        return 2
    suite, *words = arguments
    base = _base(suite)
    with _root(suite, base) as root:
        print(f"make {' '.join(words)}, in {suite}, {root}", flush=True)
        cache = base.parent / "cache"
        cache.mkdir(exist_ok=True)
        enter = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid", "--fork"]
        inside = ["sh", "-ec", _INSIDE, "sh", str(root), str(cache), "make", "-C", "/root/hako", *words]
        return subprocess.run([*enter, "--kill-child", *inside], env=_environment(), check=False).returncode


def _base(suite: str) -> Path:
    """The archive of the base system, made if the cache has none for the same packages and mirror."""
    mirror = tools.archive().uri
    key = hashlib.sha256(" ".join((suite, mirror, *BASE)).encode()).hexdigest()[:12]
    base = Path(paths.cache_dir("fresh")) / suite / f"base-{key}.tar"
    if not base.exists():
        base.parent.mkdir(parents=True, exist_ok=True)
        draft = base.with_name(f".{os.getpid()}-{base.name}")
        options = ["--variant=apt", f"--include={','.join(BASE)}", *_apt_options()]
        try:
            subprocess.run(["mmdebstrap", *options, suite, str(draft), mirror], check=True, timeout=900)
            draft.rename(base)
        finally:
            draft.unlink(missing_ok=True)
    return base


def _apt_options() -> list[str]:
    """The machine's own ways to the mirror (a proxy, a clock that is off), for mmdebstrap and inside."""
    files = sorted(Path("/etc/apt/apt.conf.d").glob("*"))
    return [f"--aptopt={file}" for file in files if "Acquire::" in file.read_text(errors="replace")]


@contextlib.contextmanager
def _root(suite: str, base: Path) -> Iterator[Path]:
    """The system with this checkout in /root/hako; removed when done, after everything mounted in it."""
    where = REPOSITORY / "build"
    where.mkdir(exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=f"{suite}-", dir=where))
    root.chmod(0o755)  # the VMM's user passes through it
    try:
        subprocess.run(["tar", "-xpf", base, "-C", root, "--xattrs"], check=True, timeout=300)
        _populate(root)
        yield root
    finally:
        if f" {root}" in Path("/proc/self/mountinfo").read_text():
            raise RuntimeError(f"something is mounted below {root}; it was not removed")
        shutil.rmtree(root)


def _populate(root: Path) -> None:
    listing = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, check=True, capture_output=True, timeout=60).stdout.decode().split("\0")
    for name in filter(None, names):
        source, target = REPOSITORY / name, root / "root/hako" / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    # Certificates that only this machine trusts (a proxy of a company or of CI), and where its names are resolved.
    for file in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", file).exists():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).unlink(missing_ok=True)
            shutil.copyfile(Path("/", file), root / file)


def _environment() -> dict[str, str]:
    passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED) and k != "PIP_FIND_LINKS"}
    return passed | FIXED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
