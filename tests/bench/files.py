"""Group `files`: reading through virtio-fs in a container, in a bare guest with the same daemon, on a plugged disk, on the host.

Owns: the files. The guests' caches are dropped before each run, so that what is read comes from the host, whose own cache is
warm; the host reads from that cache. The same busybox does all of it, and lies where the files are in every guest: to read it
through virtio-fs, and to translate what was read, may be as much as to look at 500 files. The disk is an erofs image of the same
files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.bench.lab import Lab
from tests.bench.rows import Row
from tests.bench.settings import DISKS, TEMPLATE
from tests.bench.shells import Shell, bare_shell, container_shell, host_shell
from tests.bench.stacks import Stack, on
from tests.bench.subjects import Subject, single

BIG_MIB = 64
SMALL = 500
DROP = "echo 3 > /proc/sys/vm/drop_caches"
COMMANDS = {
    f"read {BIG_MIB} MiB": "dd if={0}/big of=/dev/null bs=1M 2>/dev/null",
    f"read {SMALL} files of 4 KiB": "cat {0}/small/* >/dev/null",
    f"stat {SMALL} files": "find {0}/small -size +1000",
}
CONTAINER, BARE, DISK, HOST = "{}: container", "{}: bare guest", "{}: container's disk", "{}: host"
Place = tuple[str, Shell, str]
"""What is measured there, a shell, where the files are for it."""


def on_stack(lab: Lab, stack: Stack) -> list[Subject]:
    """Every command in every guest."""
    return [subject for place in _guests(lab, stack) for subject in _readers(*place, stack)]


def alone(lab: Lab) -> list[Subject]:
    """The host."""
    host, data = host_shell(lab), files(lab.directory)[0]
    return [single(HOST.format(what), partial(host.run, words.format(data))) for what, words in COMMANDS.items()]


def _guests(lab: Lab, stack: Stack) -> Iterator[Place]:
    data, image = files(lab.directory)
    yield CONTAINER, container_shell(lab, data, TEMPLATE, stack), "/data"
    bare, shown = bare_shell(lab, stack), lab.bare_guest(stack).show(data)
    bare.become(f"{shown}/busybox")
    yield BARE, bare, shown
    yield DISK, container_shell(lab, image, DISKS, stack), "/data"


def _readers(place: str, shell: Shell, path: str, stack: Stack) -> list[Subject]:
    """With cold caches of the guest's own."""
    drop = partial(shell.run, DROP)
    return [
        single(on(place.format(what), stack), partial(shell.run, words.format(path)), drop) for what, words in COMMANDS.items()
    ]


def files(directory: Path) -> tuple[Path, Path]:
    """A directory with a big file and many small ones, and an image of it; made once."""
    data, image = directory / "data", directory / "data.erofs"
    if not image.exists():
        (data / "small").mkdir(parents=True)
        (data / "big").write_bytes(os.urandom(1 << 20) * BIG_MIB)
        shutil.copy("/bin/busybox", data)
        for number in range(SMALL):
            (data / "small" / f"file{number:04}").write_bytes(os.urandom(4096))
        subprocess.run(["mkfs.erofs", "--quiet", str(image), str(data)], check=True, timeout=60)
    return data, image


def _row(what: str, against: str, words: str) -> Row:
    return Row(f"virtio-fs, {what}: speed over {words}", CONTAINER.format(what), against.format(what), speed=True)


ROWS = [
    *(_row(what, BARE, "the bare guest's")._replace(must=0.9, aim=0.98) for what in COMMANDS),
    *(_row(what, HOST, "the host's own")._replace(detail=True) for what in COMMANDS),
]
DISK_ROWS = [
    Row(f"{what}: speed of a disk over virtio-fs", DISK.format(what), CONTAINER.format(what), speed=True) for what in COMMANDS
]
