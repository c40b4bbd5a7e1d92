"""Making templates: once for each shape of VM, by `hako factory init` or beside the first pod that wanted one.

Owns: the steps from a configuration to a template on disk, the process that does it in the background. Must not
know: pods. Called by builder.py (`begin`) and cli/factory.py (`build`).

A pod never waits for a template: the first one boots cold, and once it is up starts a process that makes the
template at low priority and ends. The lock of template.py lets one process make it, however many pods start.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from shim import config as configuration
from shim import paths, process
from shim.errors import HakoError
from shim.hypervisor import host
from shim.hypervisor.qemu.driver import Qemu
from shim.process import NEW_NETNS, Confinement
from shim.sandbox import guestfiles, hostfacts, savedshare, template, templatekey, vmspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shim.config import Config
    from shim.hypervisor.base import VmSpec, Vsock
    from shim.sandbox.templatekey import Identity

NICENESS = "10"
ENVIRONMENT = ("HAKO_CACHE_DIR", "HAKO_STATE_DIR")


class Shape:
    """A template that may or may not be there: its VM and its identity; `unmounted`: why the share is not in it, or ""."""

    def __init__(
        self, config: Config, accelerator: str, vcpus: int, files: guestfiles.GuestFiles, unmounted: str | None = None
    ) -> None:
        """With the share if that can be, unless `unmounted`. Raises HakoError, OSError if what it is made of cannot be read."""
        self._made_of = (config, accelerator, vcpus, files)
        self.unmounted = savedshare.refusal(config) if unmounted is None else unmounted
        limits = hostfacts.limits()
        self.spec: VmSpec = vmspec.of_template(config, files, accelerator, vcpus, limits, mounted=not self.unmounted)
        self.identity: Identity = templatekey.identify(config, self.spec, Qemu(config.hypervisor))

    def plugged(self) -> Shape | None:
        """The one to take where this fails: without the share, which clones get plugged. None if this is one."""
        if self.unmounted:
            return None
        key = self.identity.key
        return Shape(*self._made_of, template.failure(key) or f"there is no template {key} yet")


def shape(config: Config, vcpus: int = 0) -> Shape:
    """The best shape for a pod with `vcpus`, 0: the default; the next best if that has just failed. Raises HakoError, OSError."""
    files = guestfiles.find(config.guest)
    probed = host.GuestFiles(files.kernel, files.image or None, files.initrd or None)
    accelerator = host.probe_accelerator(config.hypervisor, probed, _confinement(config)).name
    vcpus = vcpus or vmspec.default_vcpus(config, accelerator, hostfacts.limits())
    best = Shape(config, accelerator, vcpus, files)
    return (template.failure(best.identity.key) and best.plugged()) or best


def build(config: Config, wanted: Shape, *, wait: bool = True) -> template.Template | None:
    """The template, made unless it is there; None if another process makes it and `wait` is not asked for.

    If one with the share mounted fails, it is made without. Raises HakoError with the reason, which is also kept for ten
    minutes.
    """
    key = wanted.identity.key
    with template.locked(key, wait=wait) as ours:
        if not ours:
            return None
        found = template.find(key)
        if found is not None:
            return found
        try:
            made = _make(config, wanted)
        except (HakoError, OSError) as exc:
            template.reject(key, str(exc))
            instead = wanted.plugged()
            if instead is None:
                raise
        else:
            template.sweep(config.factory.keep)
            return made
    return build(config, instead, wait=wait)


def _make(config: Config, wanted: Shape) -> template.Template:
    began = time.monotonic()
    memory = os.memfd_create("hako-template", os.MFD_CLOEXEC)
    state = os.memfd_create("hako-template-state", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memory, wanted.spec.memory_mib << 20)
        confine = _confinement(config)
        with ExitStack() as ours:
            vsock = ours.enter_context(_vsock(config, wanted.identity.key, confine))
            spec = wanted.spec._replace(memory_fd=memory, confine=confine, vsock=vsock)
            if spec.share is not None:
                directory = ours.enter_context(template.workplace(wanted.identity.key))
                spec = spec._replace(share=ours.enter_context(savedshare.empty(config, directory)))
            Qemu(config.hypervisor).save(spec, state, config.factory.build_timeout)
        about = _about(config, wanted.spec) | {"seconds": round(time.monotonic() - began, 2)}
        return template.add(wanted.identity, memory, state, about)
    finally:
        os.close(memory)
        os.close(state)


@contextmanager
def _vsock(config: Config, key: str, confine: Confinement) -> Iterator[Vsock]:
    """A device for the guest to know, to which nobody connects."""
    import shutil

    from shim.hypervisor.vsock import open_transport

    directory = paths.daemon_socket_dir(f"template-{key}", "")
    os.makedirs(os.path.dirname(directory), mode=0o711, exist_ok=True)
    shutil.rmtree(directory, ignore_errors=True)  # of a maker that was killed: we have its lock
    transport = open_transport(config.vsock, directory, confine)
    try:
        yield transport.device()
    finally:
        transport.close()


def _about(config: Config, spec: VmSpec) -> dict[str, object]:
    return {
        "made": int(time.time()),
        "vcpus": spec.vcpus,
        "memory_mib": spec.memory_mib,
        "accelerator": spec.accelerator,
        "mounted_share": spec.mounted,
        "files": templatekey.files(config, spec),
    }


def _confinement(config: Config) -> Confinement:
    uid, gid = hostfacts.user_ids(config.runtime.user)
    return Confinement(netns=NEW_NETNS, uid=uid, gid=gid, groups=host.kvm_groups())


# In the background


def begin(config: Config, log: Callable[[str, str], None]) -> None:
    """Start a process of its own that makes the default template; it outlives ours. Never raises."""
    import msgspec

    code = f"import sys; sys.path[:] = {sys.path!r}; from shim.sandbox.templatebuild import main; sys.exit(main())"
    python = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    argv = ["setsid", "--fork", "nice", "-n", NICENESS, python, "-IS", "-c", code]
    environment = {**process.ENVIRONMENT, **{name: os.environ[name] for name in ENVIRONMENT if name in os.environ}}
    given = os.memfd_create("hako-config", os.MFD_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(given, msgspec.json.encode(config))
        os.lseek(given, 0, os.SEEK_SET)
        child = process.spawn(argv, stdin=given, stdout=null, stderr=null, env=environment)
        child.wait(5.0)
        child.close()
    except HakoError as exc:
        log("warn", f"no template is made: {exc}")
    finally:
        os.close(given)
        os.close(null)


def main() -> int:
    """The background process: the configuration comes on stdin. What goes wrong is in `hako factory status`."""
    import msgspec

    with open(0, "rb") as stream:
        config = msgspec.json.decode(stream.read(), type=configuration.Config)
    os.chdir("/")
    try:
        build(config, shape(config), wait=False)
    except (HakoError, OSError):
        return 1
    return 0
