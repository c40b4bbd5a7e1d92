"""Seccomp profiles of containers that ran lately: a VM of the pool compiles them before its pod comes (20 to 40 ms).

Owns: <cache>/seccomp/HASH, one LinuxSeccomp message each, the ones used last. Must not know: what is in them. Written by
container.py, read by spare.py. What cannot be read or written only costs the time again.
"""

from __future__ import annotations

import os

from shim import light, paths

KEPT = 4


def note(profile: bytes) -> None:
    """A container was created with this serialized profile; b"" is none."""
    directory = paths.cache_dir("seccomp")
    path = os.path.join(directory, light.sha256_hex(profile)[:32])
    try:
        if not profile:
            return
        if os.path.exists(path):
            os.utime(path)
            return
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with open(f"{path}.{os.getpid()}", "wb") as stream:
            stream.write(profile)
        os.rename(stream.name, path)
        for old in _newest_first(directory)[KEPT:]:
            os.unlink(old)
    except OSError:
        pass


def lately() -> list[bytes]:
    """The profiles of the last containers, the last one first."""
    found = []
    try:
        for path in _newest_first(paths.cache_dir("seccomp"))[:KEPT]:
            with open(path, "rb") as stream:
                found.append(stream.read())
    except OSError:
        pass
    return found


def _newest_first(directory: str) -> list[str]:
    entries = [entry for entry in os.scandir(directory) if "." not in entry.name]
    return [entry.path for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime_ns, reverse=True)]
