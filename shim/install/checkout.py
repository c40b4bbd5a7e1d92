"""Making a checkout ready to run: the guest, the tools that the distribution lacks, an image, the launchers.

Owns: the order, what is there already, and the demonstration that `make run` ends with. Must not know: how a
kernel or an image is built (guest-kernel/), how a container is run (`hako run`, which is started like any
user would). Called by install/__main__.py. Runs in the checkout's virtual environment.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import time
from functools import partial

from shim import paths, process, tools
from shim.errors import HakoError
from shim.image import busybox
from shim.install import launcher
from shim.install.steps import line, step

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.join(ROOT, "build", "bin")
BUILD_GUEST = os.path.join(ROOT, "guest-kernel", "build.py")
VSOCK = "vhost-device-vsock"
SHOWN = 'echo "Hello from container $(hostname), PID $$"; echo "kernel in the container  $(uname -r)"'
TEST_TOOLS = ("containerd2", "virtiofsd-rust", "docker-registry", "qemu10")
KERNEL_TIMEOUT = 3 * 3600.0
GUEST_TIMEOUT = 900.0


def prepare() -> None:
    """Everything that a container needs, as far as it is not there."""
    launcher.write(BIN, ROOT, sysconfig.get_path("platlib"))
    step("guest", lambda: _build("guest", GUEST_TIMEOUT))
    if not os.path.exists("/dev/vhost-vsock"):
        step(VSOCK, lambda: tools.ensure(VSOCK))
    step("busybox image", image)


def prepare_tests() -> None:
    """What tests compare with and run beside; the tests of what cannot be had are skipped by name."""
    prepare()
    step("stock guest", lambda: _build("stock", GUEST_TIMEOUT, "--aside"))
    for name in filter(tools.is_for_this_release, TEST_TOOLS):
        try:
            step(name, partial(tools.ensure, name))
        except HakoError as exc:
            print(f"hako: {name} is not to be had, its tests will be skipped: {exc}", file=sys.stderr)


def build_kernel() -> None:
    """Our own kernel, and the image for it."""
    step("guest kernel", lambda: _build("kernel", KERNEL_TIMEOUT), "compiling Linux, 5 to 10 minutes on two processors")


def image() -> str:
    """The reference of the small image, made if it is not there."""
    directory = os.path.join(paths.cache_dir("oci"), "busybox")
    if not os.path.exists(os.path.join(directory, "index.json")):
        busybox.make(directory)
    return f"oci:{directory}"


def show_a_container() -> int:
    """Prepare, run one container and show what it is."""
    begin = time.monotonic()
    prepare()
    ready = time.monotonic()
    argv = [os.path.join(BIN, "hako"), "run", "--rm", image(), "sh", "-c", SHOWN]
    print(f"\n$ {process.quoted(argv)}", flush=True)
    status = process.spawn(argv, stdin=0, stdout=1, stderr=2, env=os.environ).wait()
    print(f"kernel of the host       {os.uname().release}\n")
    line("set-up", ready - begin)
    line("container, start to end", time.monotonic() - ready)
    return status or 0


def installed_files() -> dict[str, str]:
    """What boots and what runs beside it: path below PREFIX/lib/hako -> host path."""
    boots = _build("guest", GUEST_TIMEOUT)
    files = [path for key in ("kernel", "image", "initrd") if (path := boots[key])]
    found = {f"guest/{os.path.basename(path)}": path for path in files}
    vsock = os.path.join(paths.cache_dir("tools"), VSOCK)
    if os.path.isdir(vsock):
        found[f"tools/{VSOCK}"] = vsock
    return found


def _build(what: str, timeout: float, *options: str) -> dict[str, str | None]:
    """Run guest-kernel/build.py; where kernel, image and initrd are (None: the guest has none)."""
    argv = [sys.executable, BUILD_GUEST, what, "--print-json", *options]
    answer = process.run(argv, timeout=timeout, env=_environment())
    found: dict[str, str | None] = json.loads(answer)
    return found


def _environment() -> dict[str, str]:
    """Ours without the user's own, but with what says where caches and mirrors are."""
    kept = ("HAKO_", "PIP_", "SSL_CERT", "http_proxy", "https_proxy", "no_proxy")
    return dict(process.ENVIRONMENT) | {k: v for k, v in os.environ.items() if k.startswith(kept)}
