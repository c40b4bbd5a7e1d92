"""Making a container by hand, one step after the other, each undone if a later one fails.

Owns: the order. Must not know: options (wishes.py), terminals (session.py). Called by run.py. What this
leaves behind when it is killed is a `dead` container that `hako rm` takes away.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from shim import config as configuration
from shim import errors
from shim.byhand import registry
from shim.cli import bundle, ending, exitstatus, shimbinary
from shim.cli.fifos import Fifos
from shim.cli.task import Gone, Task
from shim.image import overlay, store
from shim.network import nat

if TYPE_CHECKING:
    from shim.byhand.registry import Container
    from shim.cli.progress import Progress
    from shim.cli.wishes import Wishes
    from shim.config import Config


class Launched(NamedTuple):
    """A created container, not started yet, and what its user holds. `pod`: pidfd of its process."""

    container: Container
    task: Task
    fifos: Fifos
    pod: int


def launch(wishes: Wishes, progress: Progress, undo: ExitStack) -> Launched:
    """Everything up to Create. `undo` gets what takes it away again; to be kept until Start has succeeded.

    Raises HakoError.
    """
    try:
        return _launch(wishes, progress, undo)
    except OSError as exc:  # a full disk, a missing permission: the kernel's words alone do not say at what
        raise errors.HakoError(exc.strerror or str(exc), step=progress.text, object=exc.filename or "") from exc


def _launch(wishes: Wishes, progress: Progress, undo: ExitStack) -> Launched:
    config = configuration.load()
    container = _register(wishes, undo)
    root = _root(wishes, container, config, progress, undo)
    container.stop_signal = bundle.stop_signal(root)
    progress.step("making its network")
    network = _network(wishes, container, config, undo)
    bundle.write(container, wishes, root, network)
    registry.save(container)
    fifos = Fifos(
        container.directory,
        "",
        stdin=wishes.interactive,
        terminal=wishes.terminal,
        outputs=not wishes.detach,
    )
    undo.callback(fifos.close)
    progress.step("starting its virtual machine")
    try:
        task, pod = _start_pod(container, undo)
        stdio = fifos.logged(container.file(registry.OUTPUT))
        task.create(container.directory, stdio, terminal=wishes.terminal)
    except Gone as exc:
        raise ending.lost(container) from exc
    except errors.HakoError as exc:
        raise exitstatus.of_start(exc) from exc
    return Launched(container, task, fifos, pod)


def _register(wishes: Wishes, undo: ExitStack) -> Container:
    container, lock = registry.begin(wishes.name)
    undo.callback(os.close, lock)
    undo.callback(registry.forget, container)
    container.image = wishes.image or wishes.rootfs
    container.terminal, container.interactive = wishes.terminal, wishes.interactive
    container.remove = wishes.remove
    return container


def _root(wishes: Wishes, container: Container, config: Config, progress: Progress, undo: ExitStack) -> bundle.Root:
    """The directory as it is, or an overlay of the image that goes with the container."""
    if wishes.rootfs:
        return bundle.Root(wishes.rootfs, None)
    progress.step(f"looking for the image {wishes.image}")
    image = store.resolve(
        wishes.image,
        progress=progress.report,
        timeout=config.image.pull_timeout,
        default_registry=config.image.default_registry,
        skopeo_program=config.image.skopeo,
        umoci_program=config.image.umoci,
    )
    undo.callback(overlay.unmount, container.id)
    return bundle.Root(overlay.mount(container.id, image.rootfs), image.config)


def _network(wishes: Wishes, container: Container, config: Config, undo: ExitStack) -> bundle.Network:
    if wishes.network == "netns":
        return bundle.Network(wishes.netns, "", bundle.host_resolv_conf())
    if wishes.network == "none":
        return bundle.Network("", "", "")
    undo.callback(nat.release, container.id)
    handle = nat.acquire(
        container.id,
        bridge=config.network.nat_bridge,
        subnet=config.network.nat_subnet,
        mtu=config.network.nat_mtu,
    )
    for warning in handle.warnings:
        bundle.warn(warning)
    return bundle.Network(handle.path, handle.address, handle.resolv_conf)


def _start_pod(container: Container, undo: ExitStack) -> tuple[Task, int]:
    """The pod's process, connected to. Before it has answered, `delete` alone can take it away."""
    cleaner = undo.enter_context(ExitStack())
    cleaner.callback(ending.clean_up, container)
    task = Task(shimbinary.start(container), container.id)
    undo.callback(task.close)
    pod = task.pod()
    undo.callback(os.close, pod)
    undo.callback(ending.end_pod, container, pod)
    cleaner.pop_all()
    return task, pod
