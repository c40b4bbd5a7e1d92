"""Group `start`: the shims' `start` command alone, hako's and runc's. It has no VM yet: its stack does not matter.

Owns: how runc's is called, and ending the pod processes that both leave, unmeasured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

from tests.bench.lab import Lab
from tests.bench.measure import RunFailed, children, kill, settle
from tests.bench.pod import Pod
from tests.bench.rows import Row
from tests.bench.settings import COLD
from tests.bench.subjects import Subject, single
from tests.framework.containerd import binary

START = "start command, {}"


def alone(lab: Lab) -> list[Subject]:
    """Both. The engine starts now: what a run leaves is ended."""
    lab.engine.ctr("version")
    return [
        single(START.format("hako"), partial(_start_hako, lab)),
        single(START.format("runc"), partial(_start_runc, lab)),
    ]


def _start_hako(lab: Lab) -> float:
    with Pod(lab, COLD, lab.stacks[0]) as pod:
        return pod.start()


def _start_runc(lab: Lab) -> float:
    name = lab.unique("s")
    bundle = lab.directory / "b" / name
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(lab.spec(["true"], {}, f"/bench/{name}")))
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    known = children()
    try:
        return _started(lab, bundle, name)
    finally:
        left = children() - known
        _forget_socket(bundle)
        kill(left)
        settle(known)
        os.close(log)
        shutil.rmtree(bundle)


def _started(lab: Lab, bundle: Path, name: str) -> float:
    engine = lab.engine
    argv = [
        binary("containerd-shim-runc-v2"), "-namespace", "bench", "-address", engine.address,
        "-publish-binary", binary("containerd"), "-id", name, "start",
    ]  # fmt: skip
    environment = engine.environment | {"TTRPC_ADDRESS": f"{engine.address}.ttrpc"}
    begin = time.perf_counter()
    done = subprocess.run(
        argv, cwd=bundle, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    wall = time.perf_counter() - begin
    if done.returncode:
        raise RunFailed(f"{argv[0]} start: {done.stderr.decode(errors='replace')}")
    return wall


def _forget_socket(bundle: Path) -> None:
    """containerd's shims listen below /run/containerd/s; one that is killed leaves its socket there."""
    try:
        Path((bundle / "address").read_text().removeprefix("unix://")).unlink()
    except OSError:
        pass


ROWS = [
    Row("`containerd-shim-hako-v2 start` over runc's shim", START.format("hako"), START.format("runc"), must=8, aim=3)
]
