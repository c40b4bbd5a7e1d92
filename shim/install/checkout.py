"""Making a checkout ready to run: the guest, the tools that the distribution lacks, an image, the launchers.

Owns: the order, what is there already, and the demonstration that `make run` ends with. Must not know: how a
kernel or an image is built (guest-kernel/), how a container is run (`hako run`, which is started like any
user would). Called by install/__main__.py. Runs in the checkout's virtual environment.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import time

from shim import paths, process, tools
from shim.image import busybox
from shim.install import launcher
from shim.install.steps import line, step

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.join(ROOT, "build", "bin")
BUILD_GUEST = os.path.join(ROOT, "guest-kernel", "build.py")
KERNEL_TIMEOUT = 3 * 3600.0
GUEST_TIMEOUT = 900.0


def prepare() -> None:
    """Everything that a container needs, as far as it is not there."""
    launcher.write(BIN, ROOT, sysconfig.get_path("platlib"))
    step("guest", lambda: _build("guest", GUEST_TIMEOUT))
    if not os.path.exists("/dev/vhost-vsock"):
        step("vhost-device-vsock", lambda: tools.ensure("vhost-device-vsock"))
    step("busybox image", image)


def build_kernel() -> None:
    """Our own kernel, and the image for it."""
    step("kernel", lambda: _build("kernel", KERNEL_TIMEOUT))
    step("guest", lambda: _build("guest", GUEST_TIMEOUT))


def image() -> str:
    """The reference of the small image, made if it is not there."""
    directory = os.path.join(paths.cache_dir("image"), "busybox")
    if not os.path.exists(os.path.join(directory, "index.json")):
        busybox.make(directory)
    return f"oci:{directory}"


def show_a_container() -> int:
    """Prepare, run one container and show what it is."""
    begin = time.monotonic()
    prepare()
    ready = time.monotonic()
    command = 'echo "Hello from $(hostname), PID $$, kernel $(uname -r)"'
    argv = [os.path.join(BIN, "hako"), "run", "--rm", image(), "sh", "-c", command]
    print(f"$ {process.quoted(argv)}", flush=True)
    child = process.spawn(argv, stdin=0, stdout=1, stderr=2, env=os.environ)
    status = child.wait()
    line("set-up", ready - begin)
    line("container, start to end", time.monotonic() - ready)
    print(f"The host's kernel is {os.uname().release}.")
    return status or 0


def guest_files() -> dict[str, str]:
    """What boots and what runs beside it: name below PREFIX/lib/hako -> host path."""
    return {}


def _build(what: str, timeout: float) -> None:
    process.run([sys.executable, BUILD_GUEST, what], timeout=timeout)
