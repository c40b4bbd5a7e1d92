"""Answers that cost time to find out and hold as long as certain files stay as they are.

Owns: cache/probe/, one small file per answer, named by a hash of what the answer depends on. Must not know:
the questions. Called by hypervisor/host.py (does KVM boot?), hypervisor/clock.py and share/virtiofsd.py (which daemon is it?). A
file that cannot be read or written only costs the time again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from shim import paths


def cached(question: str, inputs: Sequence[str], find_out: Callable[[], str]) -> tuple[str, bool]:
    """The answer to `question`, which depends on `inputs`, and whether it was known.

    Exceptions are not cached.
    """
    path = _path(question, inputs)
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read(), True
    except (OSError, UnicodeDecodeError):
        pass
    answer = find_out()
    _keep(path, answer)
    return answer, False


def forget(question: str, inputs: Sequence[str]) -> None:
    """The answer was found to be wrong."""
    try:
        os.unlink(_path(question, inputs))
    except FileNotFoundError:
        pass


def identity(path: str) -> str:
    """A file as an input: its path, size and time of change (host). A missing one has an identity too."""
    try:
        status = os.stat(path)
    except OSError:
        return f"{path}:missing"
    return f"{os.path.realpath(path)}:{status.st_size}:{status.st_mtime_ns}"


def boot() -> str:
    """The host's boot as an input: what holds until the next one."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        return stream.read().strip()


def _path(question: str, inputs: Sequence[str]) -> str:
    import hashlib

    digest = hashlib.sha256("\0".join(inputs).encode("utf-8", "surrogateescape")).hexdigest()
    return os.path.join(paths.cache_dir("probe"), f"{question}-{digest[:32]}")


def _keep(path: str, answer: str) -> None:
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(answer)
        os.rename(temporary, path)
    except OSError:
        pass
