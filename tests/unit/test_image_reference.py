"""What a user may write for an image (shim/image/reference.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.image.errors import InvalidReference
from shim.image.reference import parse

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("alpine", "docker://docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker://docker.io/library/alpine:3.20"),
        ("docker://alpine", "docker://docker.io/library/alpine:latest"),
        ("docker.io/alpine", "docker://docker.io/library/alpine:latest"),
        ("index.docker.io/library/alpine", "docker://docker.io/library/alpine:latest"),
        ("user/image", "docker://docker.io/user/image:latest"),
        ("ghcr.io/a/b/c:v1.2_x", "docker://ghcr.io/a/b/c:v1.2_x"),
        ("localhost/x", "docker://localhost/x:latest"),
        ("localhost:5000/x:y", "docker://localhost:5000/x:y"),
        ("127.0.0.1:5000/x", "docker://127.0.0.1:5000/x:latest"),
        ("[::1]:5000/x", "docker://[::1]:5000/x:latest"),
        (f"alpine@{DIGEST}", f"docker://docker.io/library/alpine@{DIGEST}"),
        (f"alpine:3@{DIGEST}", f"docker://docker.io/library/alpine@{DIGEST}"),
        ("a__b/c-d--e.f", "docker://docker.io/a__b/c-d--e.f:latest"),
        ("oci:/a/b", "oci:/a/b"),
        ("oci:/a/b:t", "oci:/a/b:t"),
        ("oci-archive:/a/b.tar:t", "oci-archive:/a/b.tar:t"),
        ("docker-archive:/a/b.tar", "docker-archive:/a/b.tar"),
        ("docker-archive:/a/b.tar:repo/name:tag", "docker-archive:/a/b.tar:repo/name:tag"),
    ],
)
def test_names_are_completed_as_docker_does_it(text: str, canonical: str) -> None:
    """Every way of writing a reference has one canonical form, which skopeo takes."""
    assert parse(text).canonical == canonical


def test_relative_paths_are_taken_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A layout beside the user is found from wherever the cache is."""
    monkeypatch.chdir(tmp_path)
    assert parse("oci:build/image:v1").location == f"{tmp_path}/build/image"


def test_another_default_registry() -> None:
    """The configuration may name the registry of bare names; `library/` is Docker Hub's alone."""
    assert (
        parse("alpine", "registry.example:5000").canonical == "docker://registry.example:5000/alpine:latest"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("docker://", "empty"),
        ("Alpine", "lower case"),
        ("a//b", "no image name"),
        ("-a", "no image name"),
        ("a:", "no tag"),
        ("a:b c", "no tag"),
        ("a@sha256:12", "no digest"),
        ("a" * 256, "no image name"),
        ("ex..ample_.com/a$b", "no registry|no image name"),
        ("./image.tar", "path"),
        ("/image", "path"),
        ("oci:", "path is missing"),
        ("oci:/a:b/c", "colon"),
        ("dir:/x", "transport dir"),
        ("docker-daemon:x:y", "transport docker-daemon"),
    ],
)
def test_what_is_no_reference_is_refused_with_its_reason(text: str, reason: str) -> None:
    """The error names what is wrong with the text, before any program is started."""
    with pytest.raises(InvalidReference, match=reason):
        parse(text)
