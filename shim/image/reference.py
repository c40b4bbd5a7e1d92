"""What a user may write for an image, and what it means. Pure.

Owns: the grammar. Must not know: skopeo's options, the cache. Called by store.py.

    oci:DIR[:TAG]              an OCI layout; without TAG the only image in it, or `latest`
    oci-archive:FILE[:TAG]     the same in a tar file
    docker-archive:FILE[:NAME] what `docker save` writes
    docker://NAME              a registry's
    NAME                       the same, completed as docker does: alpine is docker.io/library/alpine:latest
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from shim.image.errors import InvalidReference

LOCAL = ("oci", "oci-archive", "docker-archive")
REGISTRY = "docker"
# Transports of containers-image that hako does not have, so that `dir:x` is not taken for a name with a tag.
FOREIGN = ("containers-storage", "dir", "docker-daemon", "ostree", "sif", "tarball", "atomic")

DOCKER_HUB = "docker.io"

# github.com/distribution/reference: component, tag, digest
COMPONENT = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"[a-z0-9]+:[0-9a-f]{32,}")
MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference. `text`: as the user wrote it, for messages.

    Local: `location` is an absolute host path, `tag` a tag or name in it or "". Registry: `location` is
    domain/path, `tag` ":TAG" or "@DIGEST" with its sign.
    """

    text: str
    transport: str
    location: str
    tag: str

    @property
    def local(self) -> bool:
        return self.transport != REGISTRY

    @property
    def domain(self) -> str:
        """Host and port of the registry."""
        return "" if self.local else self.location.partition("/")[0]

    @property
    def canonical(self) -> str:
        """The same for every way of writing it; what skopeo takes."""
        if not self.local:
            return f"docker://{self.location}{self.tag}"
        return f"{self.transport}:{self.location}" + (f":{self.tag}" if self.tag else "")


def parse(text: str, default_registry: str = DOCKER_HUB) -> Reference:
    """Read a reference; relative paths are taken from the working directory. Raises InvalidReference."""
    transport, colon, rest = text.partition(":")
    if colon and transport in LOCAL:
        return _local(text, transport, rest)
    if colon and transport == REGISTRY and rest.startswith("//"):
        return _registry(text, rest[2:], default_registry)
    if colon and transport in FOREIGN:
        raise _invalid(
            text, f"the transport {transport} is not supported", f"use {', '.join(LOCAL)} or docker://"
        )
    if text.startswith(("/", "./", "../", "~")):
        raise _invalid(text, "this is a path", "write oci:DIR, oci-archive:FILE or docker-archive:FILE")
    return _registry(text, text, default_registry)


def _invalid(text: str, reason: str, hint: str = "") -> InvalidReference:
    return InvalidReference(reason, step="image reference", object=text or '""', hint=hint)


def _local(text: str, transport: str, rest: str) -> Reference:
    path, tag = _split_tag(transport, rest)
    if not path:
        raise _invalid(text, "the path is missing", f"{transport}:PATH")
    if ":" in path:
        raise _invalid(text, "a path with a colon cannot be told from a tag", "link it to another name")
    return Reference(text, transport, os.path.abspath(path), tag)


def _split_tag(transport: str, rest: str) -> tuple[str, str]:
    """A docker-archive's name may have colons and slashes (`FILE:repo/name:tag`), a tag has none."""
    if transport == "docker-archive":
        path, _, tag = rest.partition(":")
        return path, tag
    path, colon, tag = rest.rpartition(":")
    return (path, tag) if colon and "/" not in tag else (rest, "")


def _registry(text: str, name: str, default_registry: str) -> Reference:
    if not name:
        raise _invalid(text, "it is empty")
    name, digest = _cut_digest(text, name)
    name, tag = _cut_tag(text, name)
    domain, path = _split_domain(name, default_registry)
    if not DOMAIN.fullmatch(domain):
        raise _invalid(text, f"{domain!r} is no registry")
    if not all(COMPONENT.fullmatch(part) for part in path.split("/")) or len(path) > MAX_NAME:
        hint = "names are in lower case" if path != path.lower() else ""
        raise _invalid(text, f"{path!r} is no image name", hint)
    # skopeo refuses a tag beside a digest; the digest says more.
    return Reference(text, REGISTRY, f"{domain}/{path}", digest or tag or ":latest")


def _cut_digest(text: str, name: str) -> tuple[str, str]:
    name, sign, digest = name.partition("@")
    if sign and not DIGEST.fullmatch(digest):
        raise _invalid(text, f"{digest!r} is no digest", "sha256: and 64 hexadecimal digits")
    return name, sign + digest


def _cut_tag(text: str, name: str) -> tuple[str, str]:
    """A colon after the last slash starts the tag; one before it a port."""
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        return name, ""
    if not TAG.fullmatch(tag):
        raise _invalid(text, f"{tag!r} is no tag")
    return head, colon + tag


def _split_domain(name: str, default_registry: str) -> tuple[str, str]:
    """The first component is a registry if it looks like a host: a dot, a port, or localhost."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        domain, path = ("docker.io" if first == "index.docker.io" else first), rest
    else:
        domain, path = default_registry, name
    if domain == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    return domain, path
