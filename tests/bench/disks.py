"""Group `disks`: pods whose root filesystem is a disk ([share] shared_fs = "none") beside pods with virtio-fs.

Owns: the pairs. Both kinds start from the same template; the image of the root filesystem is packed before the first round
that counts. Files are read from a plugged erofs image, and from a shared directory, with the guest's caches dropped.
"""

from __future__ import annotations

import subprocess

from tests.bench.boot import by_hand
from tests.bench.engine import CtrRun
from tests.bench.files import COMMANDS, container_shell, make_files, reader
from tests.bench.lab import DISKS, TEMPLATE, Lab
from tests.bench.rows import Row, Subject
from tests.framework.containerd import HAKO

KINDS = {"disks": DISKS, "virtio-fs": TEMPLATE}
RUN, BY_HAND, READ = "ctr run, root by {}", "hako run to first byte, root by {}", "{}: container, by {}"


def open_group(lab: Lab) -> list[Subject]:
    """Starts, and readers. The engine starts now, and the image is packed: neither is a subject's."""
    lab.engine.ctr("version")
    subjects = []
    for kind, mode in KINDS.items():
        run = CtrRun(lab, ("--runtime", HAKO, "--runtime-config-path", str(lab.configs[mode])))
        subjects += [Subject(RUN.format(kind), run.whole), Subject(BY_HAND.format(kind), by_hand(lab, mode))]
    return subjects + readers(lab)


def readers(lab: Lab) -> list[Subject]:
    """Every command on both kinds of files."""
    data = make_files(lab.directory / "disks-data")
    image = lab.directory / "disks-data.erofs"
    subprocess.run(["mkfs.erofs", "--quiet", str(image), str(data)], check=True, timeout=60)
    shells = {kind: container_shell(lab, image if mode == DISKS else data, mode) for kind, mode in KINDS.items()}
    return [
        Subject(READ.format(what, kind), reader(shell, words.format("/data"), drop=True), alone=False)
        for what, words in COMMANDS.items()
        for kind, shell in shells.items()
    ]


def _row(name: str, subject: str, *, speed: bool = False) -> Row:
    return Row(name, subject.format("disks"), subject.format("virtio-fs"), speed=speed)


ROWS = [
    _row("`ctr run --rm ... echo`, template: root by disk over virtio-fs", RUN),
    _row("first byte of `hako run`, template: root by disk over virtio-fs", BY_HAND),
    *(_row(f"{what}: speed of a disk over virtio-fs", READ.format(what, "{}"), speed=True) for what in COMMANDS),
]
