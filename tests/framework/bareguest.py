"""A guest whose init is a Python script of a test: image, boot, and the marked lines on its console.

Owns: an erofs image (or initramfs) with the host's Python, the agent package and one script, and one QEMU
run of it under TCG. It needs neither the shim nor the project's own image; only the kernel comes from
there. The script speaks in console lines "CHECK <name> ok" or "CHECK <name> FAIL <text>", and "PLUG <id>"
asks for a disk.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from shim.share import virtiofsd
from tests.framework import guests
from tests.framework.importgraph import REPOSITORY

PYTHON = Path("/usr/bin/python3").resolve()
QEMU = "qemu-system-x86_64"
CACHE = Path(os.environ.get("HAKO_CACHE_DIR", "/var/cache/hako"))
SECONDS = 240
_EMPTY = ("proc", "sys", "dev", "run", "tmp", "etc", "mnt", "root")
_LEFT_OUT = shutil.ignore_patterns(
    "asyncio", "config-3*", "dist-packages", "distutils", "email", "ensurepip", "http", "idlelib", "lib2to3",
    "multiprocessing", "pydoc_data", "site-packages", "test", "tkinter", "turtledemo", "unittest", "xml",
)  # fmt: skip


def missing() -> str:
    """The packages that lack for such a guest, "" if none does."""
    tools = {
        QEMU: "qemu-system-x86", "mkfs.erofs": "erofs-utils", "cpio": "cpio", "busybox": "busybox-static",
        "setpriv": "util-linux",
    }  # fmt: skip
    lacking = sorted({package for tool, package in tools.items() if shutil.which(tool) is None})
    return f"apt install {' '.join(lacking)}" if lacking else ""


def our_kernel() -> Path | None:
    """The project's own kernel (every driver built in), of HAKO_TEST_GUEST or the newest in the cache."""
    chosen = os.environ.get("HAKO_TEST_GUEST")
    if chosen:
        kernel = Path(json.loads(Path(chosen).read_text())["kernel"])
        return kernel if kernel.name == "vmlinux" else None
    return _newest("kernel/*/vmlinux")


def need_kernel() -> Path:
    """The same, or a skip."""
    return our_kernel() or pytest.skip("our own kernel is not built: make kernel")


def stock_kernel() -> tuple[Path, Path]:
    """The distribution's kernel and the project's initramfs with its modules."""
    built = guests.build("stock")
    return Path(built["kernel"]), Path(built["initrd"])


def _newest(pattern: str) -> Path | None:
    return max(CACHE.glob(pattern), key=lambda path: path.stat().st_mtime, default=None)


# --- the image --------------------------------------------------------------------------------------------


def tree(root: Path, script: Path, *framework: ModuleType) -> None:
    """A root file system below `root` whose /init runs `script`, with the agent and modules of tests.framework on its path."""
    for name in _EMPTY:
        (root / name).mkdir(parents=True)
    (root / "etc/resolv.conf").write_text("")
    site = Path(sysconfig.get_path("platlib"))
    extensions = [*site.glob("_cffi_backend*.so"), *site.glob("google/_upb/*.so")]
    for library in _libraries(PYTHON, *extensions):
        _copy(library, root)
    _copy(PYTHON, root)
    _copy(Path("/bin/busybox"), root)
    version = f"python{sysconfig.get_python_version()}"
    shutil.copytree(f"/usr/lib/{version}", root / "usr/lib" / version, ignore=_LEFT_OUT)
    hako = root / "usr/lib/hako"
    shutil.copytree(site / "google", hako / "google")
    for backend in site.glob("_cffi_backend*.so"):
        shutil.copy(backend, hako)
    shutil.copytree(REPOSITORY / "agent", hako / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(script, hako / "script.py")
    (hako / "tests/framework").mkdir(parents=True)
    for module in framework:
        shutil.copy(str(module.__file__), hako / "tests/framework")
    init = root / "init"
    init.write_text(
        f"#!{PYTHON} -IS\nimport sys\nsys.path.insert(0, '/usr/lib/hako')\nsys.dont_write_bytecode = True\n"
        "import script\nscript.main()\n"
    )
    init.chmod(0o755)


def _libraries(*programs: Path) -> set[Path]:
    output = subprocess.run(["ldd", *map(str, programs)], check=True, capture_output=True, text=True).stdout
    return {Path(word) for word in output.split() if word.startswith("/") and not word.endswith(":")}


def _copy(source: Path, root: Path) -> None:
    target = root / str(source).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def erofs(root: Path, image: Path) -> Path:
    """The tree as an erofs image."""
    subprocess.run(
        ["mkfs.erofs", "--all-root", "-T0", str(image), str(root)], check=True, capture_output=True
    )
    return image


def initramfs(root: Path, archive: Path) -> Path:
    """The tree as an uncompressed initramfs."""
    names = subprocess.run(["find", "."], cwd=root, check=True, capture_output=True).stdout
    with open(archive, "wb") as output:
        command = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"]
        subprocess.run(command, cwd=root, input=names, stdout=output, check=True)
    return archive


# --- the machine ------------------------------------------------------------------------------------------


class Run:
    """What a guest said before it ended."""

    def __init__(self, console: str, status: int, errors: str) -> None:
        self.console = console
        self.status = status
        self.errors = errors
        self.checks: dict[str, str] = {}
        for line in console.splitlines():
            words = line.strip().split(" ", 2)
            if len(words) == 3 and words[0] == "CHECK":
                self.checks[words[1]] = words[2]


Device = Mapping[str, object]
"""arguments of QMP's device_add"""


def boot(
    kernel: Path, options: Sequence[str], cmdline: str, directory: Path, plugs: Mapping[str, Device]
) -> Run:
    """Run a guest until it powers off; TimeoutError with the console's end when it does not in 4 minutes.

    `plugs`: the devices that the guest may ask for by "PLUG <name>".
    """
    ours, theirs = socket.socketpair()
    argv = [
        "setpriv", "--pdeathsig", "KILL",
        QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35,accel=tcg,memory-backend=ram", "-cpu", "max",
        "-smp", "2,sockets=3,maxcpus=3", "-m", "768,slots=1,maxmem=2G",
        "-object", "memory-backend-memfd,id=ram,size=768M,share=on",
        "-kernel", str(kernel), "-append", f"console=hvc0 panic=-1 quiet {cmdline}",
        "-chardev", "stdio,id=console,signal=off",
        "-device", "virtio-serial-pci", "-device", "virtconsole,chardev=console",
        "-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control",
        *options,
    ]  # fmt: skip
    start = time.monotonic()
    with ours, open(directory / "qemu.err", "wb") as errors:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        try:
            console = _listen(process, _Qmp(ours), start + SECONDS, plugs)
            status = process.wait(10)
        finally:
            process.kill()
            process.wait()
    said = (directory / "qemu.err").read_text()
    assert console, f"silent guest; QEMU says: {said}"
    return Run(console, status, said)


def _listen(process: subprocess.Popen[bytes], qmp: _Qmp, deadline: float, plugs: Mapping[str, Device]) -> str:
    assert process.stdout is not None
    output, data = process.stdout.fileno(), b""
    plugged: set[bytes] = set()
    while True:
        ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            tail = data.decode(errors="replace")[-3000:]
            raise TimeoutError(f"the guest did not power off; its console ends:\n{tail}")
        piece = os.read(output, 65536)
        if not piece:
            return data.decode(errors="replace")
        data += piece
        for line in data.splitlines():
            if line.startswith(b"PLUG ") and line not in plugged and data.endswith(b"\n"):
                plugged.add(line)
                qmp.plug(plugs[line.split()[1].decode()])


class _Qmp:
    def __init__(self, sock: socket.socket) -> None:
        self._stream = sock.makefile("rw", encoding="utf-8")
        self._negotiated = False

    def plug(self, device: Device) -> None:
        if not self._negotiated:
            self._execute("qmp_capabilities", {})
            self._negotiated = True
        if device["driver"] == "pc-dimm":
            memory = {"qom-type": "memory-backend-ram", "id": device["memdev"], "size": 128 << 20}
            self._execute("object-add", memory)
        self._execute("device_add", device)

    def _execute(self, command: str, arguments: Device) -> None:
        self._stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._stream.flush()
        while "return" not in (answer := json.loads(self._stream.readline())):
            assert "error" not in answer, answer


@contextmanager
def shared(directory: Path, socket_path: Path) -> Iterator[None]:
    """A virtiofsd that shows `directory` to whoever connects to `socket_path`."""
    log = socket_path.with_suffix(".log")
    found = virtiofsd.find()
    source = ["-o", f"source={directory}"] if found.kind == "c" else [f"--shared-dir={directory}"]
    argv = ["setpriv", "--pdeathsig", "KILL", found.path, f"--socket-path={socket_path}", *source]
    with open(log, "wb") as output:
        daemon = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 20
        while not socket_path.exists():
            assert daemon.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield
    finally:
        daemon.kill()
        daemon.wait()
