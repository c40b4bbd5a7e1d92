"""Pods out of a template: made once, used by all, never two alike, and a pod boots where there is none.

Each test has a cache of its own, whose kernel and image are the ones of everybody. HAKO_TEST_CLONES is the number of
clones that are compared (default 12; ten live at a time), HAKO_TEST_CYCLES of pods that may leave nothing (default 8).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.config import GuestConfig
from shim.sandbox import guestfiles
from tests.framework.hako import Hako, cache_without_templates, installation

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test"),
]
NONE = ("--network", "none")
CLONES = int(os.environ.get("HAKO_TEST_CLONES", "12"))
CYCLES = int(os.environ.get("HAKO_TEST_CYCLES", "8"))
ALIVE = 10
SECONDS_EACH = 15  # for a pod, where others keep the machine busy


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with everybody's kernel, image and tools, and no templates."""
    return Path(cache_without_templates(tmp_path))


@pytest.fixture
def hako(cache: Path) -> Iterator[Hako]:
    """A user of hako with that cache."""
    with installation() as hako:
        hako.environment["HAKO_CACHE_DIR"] = str(cache)
        yield hako
        hako.remove_everything()
        _await_makers(hako)


def _await_makers(hako: Hako) -> None:
    """Until no template is being made."""
    deadline = time.monotonic() + 60
    while any("templatebuild" in command for _pid, command in hako.processes()):
        assert time.monotonic() < deadline, "a template is being made for ever"
        time.sleep(0.05)


def _status(hako: Hako) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(hako.run("factory", "status", "--json", check=True).stdout)
    return found


def _keys(hako: Hako) -> list[str]:
    return [item["key"] for item in _status(hako)["templates"]]


def _steps(hako: Hako, name: str) -> str:
    return hako.run("trace", name, check=True).stdout


def _detached(hako: Hako, *words: str) -> str:
    """A container that lives on; its id."""
    return hako.run("run", "-d", *NONE, *words, hako.image, "sleep", "1000", check=True).stdout.strip()


def test_the_first_pod_boots_and_makes_the_template(hako: Hako) -> None:
    """Nobody waits for it; the second pod starts from it, with the share, the time and the limits of its own."""
    first = _detached(hako)
    assert "launch" in _steps(hako, first)
    deadline = time.monotonic() + 60
    while not _keys(hako):
        assert time.monotonic() < deadline, _status(hako)
        time.sleep(0.1)
    second = _detached(hako, "-m", "200m", "--hostname", "mine")
    assert "restore" in _steps(hako, second)
    script = "hostname; date +%s; cat /sys/fs/cgroup/memory.max; grep MemTotal /proc/meminfo; ls /bin/busybox"
    said = hako.run("exec", second, "sh", "-c", script, check=True).stdout.splitlines()
    assert said[0] == "mine"
    assert abs(int(said[1]) - time.time()) < 5
    assert said[2] == str(200 << 20)
    assert int(re.sub(r"\D", "", said[3])) > 400 << 10, "256 MiB and 256 MiB plugged"
    assert said[4] == "/bin/busybox"
    assert _keys(hako) == [_status(hako)["wanted"]]


@pytest.mark.timeout(120 + SECONDS_EACH * CLONES)
def test_no_two_clones_are_alike(hako: Hako) -> None:
    """Random numbers, UUIDs, boot ids and the addresses of new processes: all differ, from the first moment."""
    hako.run("factory", "init", check=True)
    script = (
        "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '; cat /proc/sys/kernel/random/uuid;"
        "cat /proc/sys/kernel/random/boot_id; cut -d' ' -f28 /proc/self/stat; grep -m1 stack /proc/self/maps | cut -d- -f1;"
        "hostname"
    )
    names: list[str] = []
    seen: list[list[str]] = []
    for _ in range(CLONES):
        name = _detached(hako)
        names.append(name)
        seen.append(hako.run("exec", name, "sh", "-c", script, check=True).stdout.split())
        if len(names) >= ALIVE:
            hako.run("rm", "-f", names.pop(0), check=True)
    assert "restore" in _steps(hako, names[-1])
    kinds = ("random", "uuid", "boot id", "stack", "stack again", "hostname")
    for what, values in zip(kinds, zip(*seen, strict=True), strict=True):
        assert len(set(values)) == CLONES, f"{what}: {values}"


def test_two_who_want_it_make_one(hako: Hako) -> None:
    """The second waits for the first and finds it there."""
    makers = [hako.popen("factory", "init") for _ in range(2)]
    said = sorted(maker.communicate(timeout=90)[0].strip() for maker in makers)
    assert [maker.returncode for maker in makers] == [0, 0]
    (key,) = _keys(hako)
    made = [line for line in said if re.fullmatch(rf"template {key} made, \d+ MiB", line)]
    assert made, said
    about = json.loads(Path(str(hako.environment["HAKO_CACHE_DIR"]), "template", key, "about.json").read_text())
    assert about["vcpus"] == 1


def test_a_template_that_does_not_start_is_rejected(hako: Hako) -> None:
    """The pod boots all the same; the next one does not try again, and the status says why.

    Where the share could be mounted in it, there would be a next best one.
    """
    drop_in = Path(str(hako.environment["HAKO_CONFIG"])).parent / "config.d/plugged.toml"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text("[factory]\nmounted_share = false\n")
    hako.run("factory", "init", check=True)
    (key,) = _keys(hako)
    state = Path(str(hako.environment["HAKO_CACHE_DIR"]), "template", key, "state")
    whole = state.read_bytes()
    state.chmod(0o600)
    state.write_bytes(whole[: len(whole) // 2])
    done = hako.run("run", "--rm", *NONE, hako.image, "echo", "hello", check=True)
    assert done.stdout == "hello\n"
    found = _status(hako)
    assert found["templates"] == []
    assert "the template" in found["reason"]
    assert "launch" in _steps(hako, _detached(hako))
    assert _keys(hako) == []
    assert hako.run("factory", "init", check=True).stdout.startswith(f"template {key} made")


def test_a_changed_image_makes_a_template_stale(hako: Hako, tmp_path: Path) -> None:
    """It is not used, and goes when the next one is made."""
    boots = guestfiles.find(GuestConfig())
    newest = Path(boots.image or boots.initrd)
    mine = tmp_path / "mine"
    mine.write_bytes(newest.read_bytes())
    config = Path(str(hako.environment["HAKO_CONFIG"]))
    text = config.read_text()
    config.write_text(text.replace("[guest]\n", "") + f'\n[guest]\n{"image" if boots.image else "initrd"} = "{mine}"\n')
    hako.run("factory", "init", check=True)
    (old,) = _keys(hako)
    mine.write_bytes(newest.read_bytes() + bytes(4096))
    found = _status(hako)
    assert [(item["key"], item["state"]) for item in found["templates"]] == [(old, "stale")]
    assert found["wanted"] != old
    hako.run("factory", "init", check=True)
    assert _keys(hako) == [found["wanted"]]


def test_a_pod_without_templates(cache: Path) -> None:
    """[factory] template = false: it boots, and makes nothing."""
    with installation("[factory]\ntemplate = false\n") as hako:
        hako.environment["HAKO_CACHE_DIR"] = str(cache)
        name = _detached(hako)
        assert "launch" in _steps(hako, name)
        assert hako.run("exec", name, "echo", "hello").stdout == "hello\n"
        assert not (cache / "template").exists()
        refused = hako.run("factory", "init")
        assert (refused.returncode, "[factory] template = false" in refused.stderr) == (125, True)
        hako.remove_everything()


def test_vcpus_need_a_template_of_their_own(hako: Hako) -> None:
    """Under emulation a pod with CPU limits boots, until its template was asked for."""
    hako.run("factory", "init", check=True)
    assert "launch" in _steps(hako, _detached(hako, "--cpus", "1"))
    hako.run("factory", "init", "--vcpus", "2", check=True)
    name = _detached(hako, "--cpus", "1")
    assert "restore" in _steps(hako, name)
    assert hako.run("exec", name, "nproc", check=True).stdout == "2\n"
    assert len(_keys(hako)) == 2


@pytest.mark.parametrize("configured", [0, 1])
def test_a_clone_with_two_vcpus_rehearses(cache: Path, configured: int) -> None:
    """While its agent waits for the host; the pod's own container comes up beside it. With one vCPU there is none.

    0 means two where the host has them; a pod with a limit of one CPU starts from the same template.
    """
    vcpus = configured or min(2, os.cpu_count() or 1)
    with installation() as hako:
        config = Path(str(hako.environment["HAKO_CONFIG"]))
        config.write_text(config.read_text().replace("[hypervisor]\n", f"[hypervisor]\ndefault_vcpus = {configured}\n"))
        hako.environment["HAKO_CACHE_DIR"] = str(cache)
        hako.run("factory", "init", check=True)
        name = _detached(hako, *(("--cpus", "1") if vcpus > configured else ()))
        assert "restore" in _steps(hako, name)
        deadline = time.monotonic() + (30 if vcpus > 1 else 0)
        while not (found := _guest_spans(hako, name, "rehearsal")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(found) == (vcpus > 1)
        assert all(span["begin"] < span["end"] for span in found)
        assert hako.run("exec", name, "nproc", check=True).stdout == f"{vcpus}\n"
        hako.remove_everything()


def _guest_spans(hako: Hako, name: str, wanted: str) -> list[dict[str, Any]]:
    spans = json.loads(hako.run("trace", "--json", name, check=True).stdout)
    return [span for span in spans if (span["kind"], span["name"]) == ("guest", wanted)]


def test_a_maker_that_is_killed_leaves_nothing_in_the_way(hako: Hako) -> None:
    """Its lock goes with it, its VM too, and the next one makes the template."""
    maker = hako.popen("factory", "init")
    deadline = time.monotonic() + 30
    while not any("-name\0hako-template" in _command(pid) for pid, _ in hako.processes()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    maker.kill()
    maker.communicate(timeout=10)
    deadline = time.monotonic() + 10
    while any("hako-template" in _command(pid) for pid, _ in hako.processes()):
        assert time.monotonic() < deadline, "QEMU outlives its maker"
        time.sleep(0.01)
    assert hako.run("factory", "init", check=True).stdout.strip().endswith("MiB")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def test_nobody_but_root_reads_a_template(hako: Hako) -> None:
    """It has the state of a random pool in it."""
    hako.run("factory", "init", check=True)
    directory = f"{hako.environment['HAKO_CACHE_DIR']}/template"
    found = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", directory],
        capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    assert found.returncode != 0
    assert "Permission denied" in found.stderr


@pytest.mark.timeout(120 + SECONDS_EACH * CYCLES)
def test_clones_leave_nothing_behind(hako: Hako) -> None:
    """HAKO_TEST_CYCLES pods later there are the same mounts, processes, templates and files as before."""
    hako.run("factory", "init", check=True)
    assert hako.run("run", "--rm", *NONE, hako.image, "true").returncode == 0
    before = _inventory(hako)
    for _ in range(CYCLES):
        assert hako.run("run", "--rm", *NONE, hako.image, "true").returncode == 0
    hako.assert_nothing_left()
    deadline = time.monotonic() + 20
    while _inventory(hako) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _inventory(hako) == before


def _inventory(hako: Hako) -> dict[str, Any]:
    """What a pod adds to, and what belongs to nobody when its processes have gone."""
    own = str(hako.directory)
    return {
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if own in line],
        "processes": hako.processes(),
        "templates": sorted(os.listdir(f"{hako.environment['HAKO_CACHE_DIR']}/template")),
        "files": sorted(str(path) for path in hako.state.rglob("*")),
    }
