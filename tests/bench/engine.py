"""Groups `run`, `exec` and `start`: what an engine's user waits for, on hako and on its peers, by one containerd.

Owns: `ctr run --rm ... echo`, `ctr task exec ... /bin/true`, and the shims' `start` command alone. Peers that are not
installed, or that this machine does not let run, are remembered as missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.bench.floors import F_BOOT
from tests.bench.lab import COLD, TEMPLATE, Lab
from tests.bench.measure import RunFailed, both, children, kill, settle, whole
from tests.bench.pod import Pod
from tests.bench.rows import Row, Subject
from tests.framework.containerd import HAKO, RUNC, binary
from tests.framework.ociimage import REFERENCE

RUN, FIRST, EXEC, START = "ctr run, {}", "ctr run to first byte, {}", "ctr task exec, {}", "start command, {}"
PEERS = {
    "crun": ("crun", ("--runtime", RUNC, "--runc-binary", "/usr/bin/crun"), "apt-get install crun"),
    "runsc": ("containerd-shim-runsc-v1", ("--runtime", "io.containerd.runsc.v1"), "https://gvisor.dev/docs/user_guide/install"),
}
"""Name -> the program that must be there, ctr's words for it, how to get it."""


class CtrRun:
    """`ctr run --rm` of a container that says a word."""

    def __init__(self, lab: Lab, flags: tuple[str, ...]) -> None:
        self._lab = lab
        self._flags = flags
        self._first = 0.0

    def whole(self) -> float:
        """To ctr's exit."""
        engine = self._lab.engine
        name = self._lab.unique("r")
        argv = engine.argv("run", "--rm", *self._flags, REFERENCE, name, "echo", "x")
        self._first, over = both(argv, engine.environment)
        return over

    def first(self) -> float:
        """To the first byte, of the run that `whole` did."""
        return self._first


def runtimes(lab: Lab) -> dict[str, tuple[str, ...]]:
    """Name -> ctr's flags: hako in each mode, runc, and the peers that run here."""
    config = {f"hako {mode}": ("--runtime", HAKO, "--runtime-config-path", str(lab.configs[mode])) for mode in (COLD, TEMPLATE)}
    found = {**config, "runc": ("--runtime", RUNC)}
    for name, (program, flags, how) in PEERS.items():
        if shutil.which(program) is None:
            lab.without(name, f"no {program}: {how}")
            continue
        try:
            CtrRun(lab, flags).whole()
            found[name] = flags
        except RunFailed as exc:
            lab.without(name, f"installed, does not run here: {str(exc)[-200:].strip()}")
    return found


def open_run(lab: Lab) -> list[Subject]:
    """`ctr run`."""
    subjects = []
    for name, flags in runtimes(lab).items():
        run = CtrRun(lab, flags)
        subjects += [Subject(RUN.format(name), run.whole), Subject(FIRST.format(name), run.first, alone=False)]
    return subjects


RUN_ROWS = [
    Row("`ctr run --rm ... echo`, cold, over runc", RUN.format("hako cold"), RUN.format("runc")),
    Row("first byte of `ctr run`, cold, over F_boot", FIRST.format("hako cold"), F_BOOT),
    Row("`ctr run --rm ... echo`, template, over runc", RUN.format("hako template"), RUN.format("runc"), must=4, aim=3),
    Row("first byte of `ctr run`, template, over F_boot", FIRST.format("hako template"), F_BOOT),
    Row("`ctr run --rm ... echo`, crun, over runc", RUN.format("crun"), RUN.format("runc")),
]


def open_exec(lab: Lab) -> list[Subject]:
    """`ctr task exec` in a container that idles."""
    flags = {"hako": ("--runtime", HAKO), "runc": ("--runtime", RUNC)}
    return [Subject(EXEC.format(name), _Exec(lab, _idle(lab, words))) for name, words in flags.items()]


def _idle(lab: Lab, flags: tuple[str, ...]) -> str:
    name = lab.unique("i")
    lab.engine.ctr("run", "-d", *flags, REFERENCE, name, "sleep", "1000000")
    return name


class _Exec:
    def __init__(self, lab: Lab, container: str) -> None:
        self._lab = lab
        self._container = container

    def __call__(self) -> float:
        engine = self._lab.engine
        argv = engine.argv("task", "exec", "--exec-id", self._lab.unique("e"), self._container, "/bin/true")
        return whole(argv, engine.environment)


EXEC_ROWS = [Row("`ctr task exec ... /bin/true` over runc", EXEC.format("hako"), EXEC.format("runc"), must=1.5, aim=0.5)]


def open_start(lab: Lab) -> list[Subject]:
    """The `start` command of both shims; the pod process that it leaves is ended, unmeasured."""
    return [
        Subject(START.format("hako"), lambda: _start_hako(lab)),
        Subject(START.format("runc"), lambda: _start_runc(lab)),
    ]


def _start_hako(lab: Lab) -> float:
    with Pod(lab, COLD) as pod:
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


START_ROWS = [
    Row("`containerd-shim-hako-v2 start` over runc's shim", START.format("hako"), START.format("runc"), must=8, aim=3)
]
