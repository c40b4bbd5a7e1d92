"""skopeo: any image into an OCI layout of ours.

Owns: its options, its progress, and what its last words mean. Must not know: the cache, unpacking. Called by
store.py.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence

from shim import process
from shim.errors import Timeout
from shim.image.errors import ImageError, ImageNotFound, NotAnImage, RegistryError, WrongArchitecture
from shim.image.platform import architecture
from shim.image.reference import Reference

Progress = Callable[[str, str], None]  # step ("pull", "unpack"), detail

# Where a policy may be; without one skopeo refuses everything (containers-policy.json(5)).
POLICIES = ("/etc/containers/policy.json", os.path.expanduser("~/.config/containers/policy.json"))
# What skopeo takes from its environment: credentials, proxies, certificates.
KEPT = (
    "HOME", "XDG_RUNTIME_DIR", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip

# What skopeo's (1.9) last words mean; the first row with a pattern that is found counts.
MEANINGS: tuple[tuple[type[ImageError], str, str], ...] = (
    (WrongArchitecture, "", r"no image found in (manifest list|image index) for architecture"),
    (ImageNotFound, "", r"no descriptor found for reference|manifest unknown|name unknown|StatusCode: 404"),
    (
        RegistryError,
        "does it exist? log in with `skopeo login`",
        r"unauthorized|authentication required|denied",
    ),
    (
        RegistryError,
        "",
        r"pinging container registry|dial tcp|i/o timeout|x509|TLS|server misbehaving|toomany",
    ),
    (ImageError, "HAKO_CACHE_DIR moves the cache", r"no space left on device|disk quota"),
    (NotAnImage, "", r"unexpected EOF|(manifest|index)\.json|invalid|did not match|no such file|unsupported"),
)


def copy(
    reference: Reference,
    directory: str,
    tag: str,
    *,
    timeout: float,
    progress: Progress | None = None,
    skopeo: str = "skopeo",
) -> None:
    """Copy the image for this machine into the OCI layout `directory` (host path) as `tag`.

    The directory above it takes what is large and temporary.

    Raises ImageError or what the failure means, Timeout. skopeo has ended then, and what it wrote may be
    there in part.
    """
    argv = [skopeo, *_policy(), f"--tmpdir={os.path.dirname(directory)}", "copy", *_tls(reference)]
    argv += [*_as_they_are(reference), reference.canonical, f"oci:{directory}:{tag}"]
    env = dict(process.ENVIRONMENT) | {name: os.environ[name] for name in KEPT if name in os.environ}
    try:
        run_lines(argv, timeout, _reporter(progress), env)
    except process.CommandFailed as failed:
        raise meaning(failed, reference) from failed


def _policy() -> list[str]:
    return [] if any(map(os.path.exists, POLICIES)) else ["--insecure-policy"]


def _tls(reference: Reference) -> list[str]:
    """A registry on this machine is spoken to without TLS too, as docker does."""
    return ["--src-tls-verify=false"] if not reference.local and _loopback(reference.domain) else []


def _loopback(domain: str) -> bool:
    """Whether `domain` (with or without a port) is localhost, 127.0.0.0/8 or ::1."""
    import ipaddress

    host = re.sub(r":[0-9]+$", "", domain).strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _as_they_are(reference: Reference) -> list[str]:
    """Uncompressed layers need not be compressed, except those of a docker-archive: skopeo calls them gzip
    all the same, and umoci believes it.
    """
    return ["--dest-oci-accept-uncompressed-layers"] if reference.transport in ("oci", "oci-archive") else []


def _reporter(progress: Progress | None) -> Callable[[str], None]:
    if progress is None:
        return lambda line: None
    report = progress
    return lambda line: report("pull", line)


def run_lines(
    argv: Sequence[str], timeout: float, on_line: Callable[[str], None], env: dict[str, str]
) -> None:
    """Run `argv` to its end, handing its stdout over line by line. Raises process.CommandFailed, Timeout."""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        child = process.spawn(argv, stdout=write, env=env, confine=process.Confinement())
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    try:
        _read_lines(read, timeout, on_line)
        if child.wait(1.0) is None:
            raise Timeout(f"took more than {timeout:g} s", step="run", object=process.quoted(argv))
        if child.poll() != 0:
            raise child.failure()
    finally:
        os.close(read)
        child.terminate()
        child.close()


def _read_lines(fd: int, timeout: float, on_line: Callable[[str], None]) -> None:
    """Lines until the end of the stream or the deadline."""
    import select

    left = process.deadline(timeout)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    rest = b""
    while poll.poll(left() * 1000):
        chunk = os.read(fd, 65536)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            on_line(line.decode("utf-8", "replace"))


def meaning(failed: process.CommandFailed, reference: Reference) -> ImageError:
    """The error that skopeo's last line stands for, with that line in it."""
    step = "fetch image (skopeo)"
    if failed.status == 127:
        return ImageError("there is no such program", step=step, object=reference.text, hint="install skopeo")
    said = last_words(failed.stderr) or failed.message
    for kind, hint, pattern in MEANINGS:
        if re.search(pattern, said, re.IGNORECASE):
            return kind(_INTRODUCTIONS.get(kind, "") + said, step=step, object=reference.text, hint=hint)
    return ImageError(said, step=step, object=reference.text)


_INTRODUCTIONS = {
    WrongArchitecture: f"it has no variant for this machine (linux/{architecture()}): ",
    NotAnImage: "this is no usable image: ",
}


def last_words(stderr: str) -> str:
    """The message in the last line, taken out of logrus' key=value form."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    if not lines:
        return ""
    match = re.search(r'msg=("(?:[^"\\]|\\.)*")', lines[-1])
    if not match:
        return lines[-1].strip()
    try:
        return str(json.loads(match.group(1)))
    except ValueError:
        return match.group(1).strip('"')
