"""References to unpacked images by the real skopeo and umoci, from layouts, archives and a registry on
loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import tools
from shim.image import store
from shim.image.errors import (
    EmptyImage,
    ImageError,
    ImageNotFound,
    NotAnImage,
    RegistryError,
    WrongArchitecture,
)
from tests.framework.images import make_busybox, make_image, tar

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = tools.find("docker-registry")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root (umoci sets owners): run as root"),
    pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo: apt install skopeo"),
    pytest.mark.skipif(not shutil.which("umoci"), reason="needs umoci: apt install umoci"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "oci"


def leftovers(cache: Path) -> list[str]:
    """Everything in the cache but locks."""
    return [
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if path.is_file() and path.parent.name != "locks"
    ]


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[str]:
    """A registry on loopback; host and port."""
    if REGISTRY is None:
        pytest.skip("needs a registry: python -m shim.tools --ensure docker-registry")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = directory / "registry.yml"
    storage = f"storage: {{filesystem: {{rootdirectory: {directory}/registry}}}}"
    config.write_text(f"version: 0.1\n{storage}\nhttp: {{addr: '{address}'}}\n")
    process = subprocess.Popen(
        [REGISTRY, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 1).close()
                break
            time.sleep(0.02)
        yield address
    finally:
        process.kill()
        process.wait()


def push(source: str, target: str) -> None:
    subprocess.run(
        ["skopeo", "copy", "-q", "--dest-tls-verify=false", source, target], check=True, timeout=60
    )


def test_a_layout_is_unpacked_once(tmp_path: Path) -> None:
    """The first time fetches and unpacks, the second finds it without starting a program."""
    reference = make_busybox(tmp_path / "bb", Env=["A=b"], User="daemon")
    steps: list[str] = []
    image = store.resolve(reference, progress=lambda step, detail: steps.append(step))
    assert os.readlink(f"{image.rootfs}/bin/ls") == "busybox"
    assert (image.config.env, image.config.user, image.config.cmd) == (("A=b",), "daemon", ("sh",))
    assert {"pull", "unpack"} <= set(steps)
    again = store.resolve(reference, skopeo_program="/none", umoci_program="/none")
    assert again == image


def test_a_changed_layout_is_noticed(tmp_path: Path) -> None:
    """A tag that means another image now is resolved to that."""
    first = store.resolve(make_image(tmp_path / "i", [tar({"f": "1"})]))
    second = store.resolve(make_image(tmp_path / "i", [tar({"f": "2"})]))
    assert first.id != second.id and Path(second.rootfs, "f").read_text() == "2"


def test_layers_lie_over_each_other(tmp_path: Path) -> None:
    """A later layer replaces a file and whites another out."""
    layers = [tar({"a": "old", "b": "gone"}), tar({"a": "new", ".wh.b": ""})]
    image = store.resolve(make_image(tmp_path / "i", layers))
    assert Path(image.rootfs, "a").read_text() == "new" and not Path(image.rootfs, "b").exists()


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_archives_are_read(tmp_path: Path, kind: str) -> None:
    """What `docker save` and `skopeo copy oci-archive:` write can be run, and a rewritten file is noticed."""
    for text in ("1", "22"):
        source = make_image(tmp_path / "i", [tar({"f": text})])
        archive = tmp_path / "image.tar"
        archive.unlink(missing_ok=True)
        push(source, f"{kind}:{archive}:name/of:tag" if kind == "docker-archive" else f"{kind}:{archive}:tag")
        assert Path(store.resolve(f"{kind}:{archive}").rootfs, "f").read_text() == text


def test_a_registry_is_asked_once_unless_told_so(tmp_path: Path) -> None:
    """docker://NAME and the bare name are the same; "missing" serves the cache, "always" asks again,
    "never" not.
    """
    with registry(tmp_path) as address:
        push(make_image(tmp_path / "i", [tar({"f": "1"})]), f"docker://{address}/some/name:v1")
        with pytest.raises(ImageNotFound, match="cache"):
            store.resolve(f"{address}/some/name:v1", pull="never")
        first = store.resolve(f"{address}/some/name:v1")
        push(make_image(tmp_path / "i", [tar({"f": "2"})]), f"docker://{address}/some/name:v1")
        assert store.resolve(f"docker://{address}/some/name:v1").id == first.id
        assert Path(store.resolve(f"{address}/some/name:v1", pull="always").rootfs, "f").read_text() == "2"
        with pytest.raises(ImageNotFound):
            store.resolve(f"{address}/some/name:none")
    assert Path(store.resolve(f"{address}/some/name:v1", pull="never").rootfs, "f").read_text() == "2"


def test_an_unreachable_registry_is_named(tmp_path: Path, cache: Path) -> None:
    """Nobody listens: the registry, the image and skopeo's reason are in the error, and nothing is left."""
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:1/x.*connection refused"):
        store.resolve("127.0.0.1:1/x")
    assert leftovers(cache) == []


def test_a_registry_that_never_answers_is_given_up(tmp_path: Path, cache: Path) -> None:
    """The time-out holds; skopeo is gone and nothing is left."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        with pytest.raises(Exception, match="took more than 1 s"):
            store.resolve(f"127.0.0.1:{silent.getsockname()[1]}/x", timeout=1)
    assert time.monotonic() - begin < 6
    assert leftovers(cache) == []


def test_another_machines_image_is_refused(tmp_path: Path, cache: Path) -> None:
    """An image for arm64, alone or as the only one in an index, is refused by name, without a trace."""
    alone = make_image(tmp_path / "arm", [tar({"f": "1"})], arch="arm64")
    with pytest.raises(WrongArchitecture, match=r"linux/arm64.*this machine"):
        store.resolve(alone)
    with pytest.raises(WrongArchitecture, match="no variant for this machine"):
        store.resolve(nest_in_index(tmp_path / "arm"))
    assert leftovers(cache) == []


def nest_in_index(layout: Path) -> str:
    """Make the layout's image the only one of a multi-platform index."""
    import hashlib

    index = json.loads((layout / "index.json").read_text())
    entry = index["manifests"][0] | {"platform": {"architecture": "arm64", "os": "linux"}}
    kind = "application/vnd.oci.image.index.v1+json"
    data = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]}).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    annotations = {"org.opencontainers.image.ref.name": "multi"}
    descriptor = {
        "mediaType": kind,
        "digest": f"sha256:{digest}",
        "size": len(data),
        "annotations": annotations,
    }
    index["manifests"].append(descriptor)
    (layout / "index.json").write_text(json.dumps(index))
    return f"oci:{layout}:multi"


def test_images_without_files_are_refused(tmp_path: Path, cache: Path) -> None:
    """No layers, or layers without files, never become a root filesystem (CVE-2026-24054)."""
    with pytest.raises(EmptyImage, match="no layers"):
        store.resolve(make_image(tmp_path / "none", []))
    with pytest.raises(EmptyImage, match="no files"):
        store.resolve(make_image(tmp_path / "empty", [tar({})]))
    assert leftovers(cache) == []


def test_damaged_images_are_refused(tmp_path: Path, cache: Path) -> None:
    """A changed byte in a layer and a missing one are found, and nothing is left."""
    reference = make_busybox(tmp_path / "bb")
    (layer,) = [p for p in (tmp_path / "bb/blobs/sha256").iterdir() if p.stat().st_size > 100_000]
    data = bytearray(layer.read_bytes())
    data[9000] ^= 1
    layer.write_bytes(data)
    with pytest.raises(NotAnImage, match=r"[Dd]igest"):
        store.resolve(reference)
    layer.unlink()
    with pytest.raises(NotAnImage, match="no such file"):
        store.resolve(reference)
    assert leftovers(cache) == []


def test_a_layer_that_is_not_what_the_config_says_is_refused(tmp_path: Path, cache: Path) -> None:
    """umoci compares the unpacked layer with the config's diff id; the unpacked half is gone."""
    import hashlib

    reference = make_busybox(tmp_path / "bb")
    blobs = tmp_path / "bb/blobs/sha256"
    index = json.loads((tmp_path / "bb/index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_text())
    config["rootfs"]["diff_ids"] = ["sha256:" + "0" * 64]
    for descriptor, document in ((manifest["config"], config), (index["manifests"][0], manifest)):
        data = json.dumps(document).encode()
        descriptor |= {"digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}
        (blobs / descriptor["digest"][7:]).write_bytes(data)
    (tmp_path / "bb/index.json").write_text(json.dumps(index))
    with pytest.raises(NotAnImage):
        store.resolve(reference)
    assert leftovers(cache) == []


def test_what_is_no_image_is_told_so(tmp_path: Path, cache: Path) -> None:
    """A text file, a tar of something else, an empty directory, a missing tag, file or directory."""
    (tmp_path / "text").write_text("hello")
    (tmp_path / "other.tar").write_bytes(tar({"etc/hostname": "x"}))
    (tmp_path / "empty").mkdir()
    make_busybox(tmp_path / "bb")
    for reference in (
        "docker-archive:{}/text",
        "oci-archive:{}/other.tar",
        "docker-archive:{}/other.tar",
        "oci:{}/empty",
    ):
        with pytest.raises(NotAnImage):
            store.resolve(reference.format(tmp_path))
    for reference in ("docker-archive:{}/none", "oci:{}/none", "oci:{}/bb:other"):
        with pytest.raises(ImageNotFound):
            store.resolve(reference.format(tmp_path))
    assert leftovers(cache) == []


def test_many_at_once_unpack_once(tmp_path: Path) -> None:
    """Four threads that want the same image get the same directory, unpacked by one of them."""
    reference = make_busybox(tmp_path / "bb")
    steps: list[str] = []
    images: list[store.Image] = []
    threads = [
        threading.Thread(
            target=lambda: images.append(
                store.resolve(reference, progress=lambda step, detail: steps.append(step))
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({image.rootfs for image in images}) == 1 and len(images) == 4
    assert steps.count("unpack") == 1


def test_a_failing_unpack_leaves_nothing_and_can_be_repeated(tmp_path: Path, cache: Path) -> None:
    """A umoci that dies half way (full disk) leaves no image; the next one succeeds."""
    reference = make_busybox(tmp_path / "bb")
    broken = program(tmp_path, "mkdir -p $5/half; echo '   x no space left on device' >&2; exit 1")
    with pytest.raises(ImageError, match="no space left"):
        store.resolve(reference, umoci_program=broken)
    assert leftovers(cache) == []
    assert os.path.exists(store.resolve(reference).rootfs + "/bin/busybox")


def program(directory: Path, script: str) -> str:
    path = directory / "fake"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_killed_process_leaves_nothing_that_lasts(tmp_path: Path, cache: Path) -> None:
    """SIGKILL during unpacking: umoci dies too, no image appears, and the next call sweeps the rest."""
    reference = make_busybox(tmp_path / "bb")
    slow = program(tmp_path, f"echo $$ > {tmp_path}/pid; mkdir -p $5/half; touch $5/half/file; exec sleep 60")
    code = f"from shim.image import store; store.resolve({reference!r}, umoci_program={slow!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip() != "")
    process.send_signal(signal.SIGKILL)
    process.wait()
    umoci = int((tmp_path / "pid").read_text())
    wait_for(lambda: not alive(umoci))
    assert not (cache / "images").exists() or not list((cache / "images").iterdir())
    store.resolve(make_image(tmp_path / "other", [tar({"f": "1"})]))
    assert not list((cache / "tmp").iterdir())


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: object) -> None:
    end = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited 20 s"
        time.sleep(0.02)


def test_missing_programs_are_named(tmp_path: Path) -> None:
    """Without skopeo or umoci the error says what to install."""
    reference = make_busybox(tmp_path / "bb")
    with pytest.raises(ImageError, match="install skopeo"):
        store.resolve(reference, skopeo_program="/none/skopeo")
    with pytest.raises(ImageError, match="install umoci"):
        store.resolve(reference, umoci_program="/none/umoci")


def test_the_cache_is_closed_to_other_users(tmp_path: Path, cache: Path) -> None:
    """Setuid programs of images must not be reachable for users of the host."""
    store.resolve(make_busybox(tmp_path / "bb"))
    assert cache.stat().st_mode & 0o777 == 0o700


def test_the_busybox_image_is_reproducible(tmp_path: Path) -> None:
    """Made twice it has the same digests, and its programs run."""
    make_busybox(tmp_path / "a")
    time.sleep(1.1)  # into another second, which would show in a date
    make_busybox(tmp_path / "b")
    assert (tmp_path / "a/index.json").read_bytes() == (tmp_path / "b/index.json").read_bytes()
    image = store.resolve(f"oci:{tmp_path}/a")
    out = subprocess.run(
        ["chroot", image.rootfs, "sh", "-c", "id -un; stat -c %a /tmp"], capture_output=True, check=True
    )
    assert out.stdout == b"root\n1777\n"
