"""Image configs, layouts on disk and skopeo's last words, read as data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shim.image import layout, skopeo
from shim.image.errors import ImageError, ImageNotFound, NotAnImage, RegistryError, WrongArchitecture
from shim.image.imageconfig import ImageConfig, describe
from shim.image.reference import parse
from shim.process import CommandFailed
from tests.framework.images import make_image, tar


def test_every_field_that_matters_is_read() -> None:
    """Entrypoint, command, environment, directory, user, signal, ports, volumes and labels arrive."""
    config = {
        "Entrypoint": ["/e"], "Cmd": ["c"], "Env": ["A=1"], "WorkingDir": "/w", "User": "u:g",
        "StopSignal": "SIGQUIT",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Volumes": {"/v": {}}, "Labels": {"a": "b"},
    }  # fmt: skip
    document = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"diff_ids": ["sha256:1"]},
        "config": config,
    }
    image = describe(json.dumps(document).encode(), "x")
    assert (image.architecture, image.os, image.diff_ids) == ("amd64", "linux", ("sha256:1",))
    assert image.config == ImageConfig(
        ("/e",), ("c",), ("A=1",), "/w", "u:g", "SIGQUIT", ("53/udp", "80/tcp"), ("/v",), {"a": "b"}
    )


def test_null_and_missing_fields_are_defaults() -> None:
    """Docker writes null for what is not set; an entrypoint that is [] is not the same as none."""
    image = describe(b'{"config": {"Entrypoint": null, "Cmd": null, "Labels": null}}', "x")
    assert image.config == ImageConfig() and image.diff_ids == ()
    assert describe(b'{"config": {"Entrypoint": []}}', "x").config.entrypoint == ()


@pytest.mark.parametrize(
    ("blob", "field"),
    [
        (b"{", "JSON"),
        (b"[]", "not an object"),
        (b'{"config": []}', "config"),
        (b'{"config": {"Env": "A=1"}}', r"config\.Env"),
        (b'{"config": {"Cmd": [1]}}', r"config\.Cmd"),
        (b'{"config": {"User": {}}}', r"config\.User"),
        (b'{"config": {"Env": ["A\\u0000B"]}}', r"config\.Env"),
        (b'{"rootfs": {"diff_ids": {}}}', r"rootfs\.diff_ids"),
    ],
)
def test_a_wrong_type_is_named(blob: bytes, field: str) -> None:
    """A hostile config yields an error with the field's path, never a Python exception."""
    with pytest.raises(NotAnImage, match=field):
        describe(blob, "the image")


def test_the_tag_is_chosen(tmp_path: Path) -> None:
    """With a tag that one, without the only one, else `latest`, else an error that lists them."""
    for tag in ("a", "b"):
        make_image(tmp_path, [tar({"f": tag})], tag)
    assert layout.choose(str(tmp_path), "a") != layout.choose(str(tmp_path), "b")
    with pytest.raises(ImageNotFound, match=r"several.*a, b"):
        layout.choose(str(tmp_path), "")
    with pytest.raises(ImageNotFound, match="'c'"):
        layout.choose(str(tmp_path), "c")
    make_image(tmp_path, [tar({"f": "l"})], "latest")
    assert layout.choose(str(tmp_path), "") == layout.choose(str(tmp_path), "latest")


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "{}",
        '{"manifests": []}',
        '{"manifests": [{"digest": "sha256:../../etc/passwd"}]}',
        '{"manifests": [{}]}',
    ],
)
def test_a_hostile_index_is_refused(tmp_path: Path, index: str) -> None:
    """Anything but a list of descriptors with proper digests is no layout."""
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(NotAnImage):
        layout.choose(str(tmp_path), "")


def test_a_blob_is_what_its_digest_says(tmp_path: Path) -> None:
    """A changed manifest and a digest that is a path are refused."""
    make_image(tmp_path, [tar({"f": "1"})])
    digest = layout.choose(str(tmp_path), "")["digest"]
    assert layout.manifest(str(tmp_path), digest, "x").digest == digest
    with pytest.raises(NotAnImage, match="no digest"):
        layout.blob(str(tmp_path), "sha256:../../index.json", "x")
    (tmp_path / "blobs/sha256" / digest[7:]).write_text("{}")
    with pytest.raises(NotAnImage, match="damaged"):
        layout.manifest(str(tmp_path), digest, "x")


def log(message: str) -> str:
    return f'time="2026-11-23T09:32:07Z" level=fatal msg={json.dumps(message)}\n'


def test_skopeos_last_words_are_taken_out_of_its_log_line() -> None:
    """The message is unquoted; a line in another form is taken as it is."""
    assert skopeo.last_words("noise\n" + log('Get "https://x/": EOF')) == 'Get "https://x/": EOF'
    assert skopeo.last_words("plain words\n\n") == "plain words"
    assert skopeo.last_words("") == ""


CASES: list[tuple[str, type[ImageError]]] = [
    ('no image found in manifest list for architecture amd64, variant "", OS linux', WrongArchitecture),
    ("reading manifest v9 in docker.io/library/alpine: manifest unknown", ImageNotFound),
    ("reading manifest latest in quay.io/a/b: name unknown: repository not found", ImageNotFound),
    ("reading manifest latest in docker.io/a/b: requested access to the resource is denied", RegistryError),
    ('pinging container registry r: Get "https://r/v2/": dial tcp: lookup r: no such host', RegistryError),
    ('pinging container registry r: Get "https://r/v2/": x509: unknown authority', RegistryError),
    ("writing blob: write /var/x: no space left on device", ImageError),
    ("loading tar component manifest.json: file does not exist", NotAnImage),
    ("something new", ImageError),
]  # fmt: skip


@pytest.mark.parametrize(("said", "kind"), CASES)
def test_skopeos_words_have_a_meaning(said: str, kind: type[ImageError]) -> None:
    """Each failure becomes the error a caller can tell apart, with the image and skopeo's reason in it."""
    failed = CommandFailed(["skopeo"], "exited with status 1", log(said), 1)
    error = skopeo.meaning(failed, parse("alpine:v9"))
    assert type(error) is kind
    assert said in str(error) and "alpine:v9" in str(error)


LOOPBACK = ("localhost", "localhost:5000", "127.0.0.1:5000", "127.3.2.1", "[::1]:5000")
OTHERS = ("127.0.0.1.evil.example", "10.0.0.1:5000", "localhost.evil.example", "[::2]:5000", "a.example")


def test_only_this_machines_registries_are_spoken_to_without_tls() -> None:
    """As for docker: localhost and loopback addresses, nobody else."""
    assert all(skopeo._tls(parse(f"{name}/x")) for name in LOOPBACK)
    assert not any(skopeo._tls(parse(f"{name}/x")) for name in OTHERS)
