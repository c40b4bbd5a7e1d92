"""The cache of built things: /var/cache/hako/<kind>/<key>/, made once per key, by one process at a time, all or nothing.

Owns keys (hash of everything that goes into a result), locks and the move into place. Knows nothing of what is built.
"""
from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEY_LENGTH = 24
UNFINISHED_SECONDS = 600  # between a directory's making and its lock pass microseconds


def cache_root() -> Path:
    """The cache directory on the host: HAKO_CACHE_DIR or /var/cache/hako (the same rule as shim/paths.py)."""
    return Path(os.environ.get("HAKO_CACHE_DIR") or "/var/cache/hako")


def scratch_root() -> Path:
    """Where unfinished things are made: on the cache's file system (gigabytes fit, rename works), out of its way."""
    path = cache_root() / "unfinished"
    path.mkdir(parents=True, exist_ok=True)
    return path


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def key(inputs: Iterable[tuple[str, str | bytes]]) -> str:
    """One short hex name for (label, content) pairs: any change of a label, a content or their order changes it."""
    total = hashlib.sha256()
    for label, content in inputs:
        data = content.encode() if isinstance(content, str) else content
        total.update(f"{len(label)}:{label}{len(data)}:".encode() + data)
    return total.hexdigest()[:KEY_LENGTH]


def file_inputs(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Files as inputs of a key, by name and content."""
    return [(path.name, file_digest(path)) for path in paths]


def ensure(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """The directory <cache>/<kind>/<name>, made by `make(empty directory)` unless it is there already.

    Two processes that want the same wait for one another; a `make` that raises leaves nothing behind.
    """
    target = cache_root() / kind / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / f".{name}.lock"):
        if not target.is_dir():
            _make_in_place(target, make)
    return target


def publish(directory: Path, out: Path) -> None:
    """Copies the files of a cache entry to a directory that the user named."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(directory.iterdir()):
        shutil.copy2(path, out / path.name)


def _make_in_place(target: Path, make: Callable[[Path], None]) -> None:
    _sweep(scratch_root())
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=scratch_root()))
    mark = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(mark, fcntl.LOCK_EX)
        make(partial)
        for path in partial.iterdir():
            # Age says nothing about use: build.py marks what it chose by the time of its files.
            os.utime(path, (0, 0))
        # Readable for the unprivileged user that the VMM runs as; mkdtemp makes 0700.
        partial.chmod(0o755)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(mark)


def _sweep(directory: Path) -> None:
    """Removes what killed builds left (a kernel's is 2 GiB): old enough, and locked by nobody."""
    for path in directory.iterdir():
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - path.stat().st_mtime > UNFINISHED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except (BlockingIOError, FileNotFoundError):  # in the works, or swept by somebody else
            continue
        finally:
            os.close(fd)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
