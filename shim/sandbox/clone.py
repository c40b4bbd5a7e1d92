"""A pod's VM that comes out of a template instead of booting.

Owns: which template a pod may start from, the order copy - load - plug - hello, what makes a clone unlike its
siblings. Must not know: how templates are made or kept, what the plugged devices lead to. Called by builder.py.

Whatever goes wrong between the template and the clone's hello is TemplateFailed, and builder.py boots instead;
but for a VMM that was killed, by somebody or because a daemon of it had ended: another one would not fare better.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from shim.errors import BootError, HakoError
from shim.hypervisor.qemu.driver import Qemu
from shim.sandbox import hostfacts, template, templatebuild, vmspec

if TYPE_CHECKING:
    from agent.api import agent_pb2
    from shim.agent_client import AgentClient
    from shim.config import Config
    from shim.hypervisor.base import Nic, Share, Vm, VmSpec, Vsock, Waiting
    from shim.sandbox.guestfiles import GuestFiles
    from shim.sandbox.plan import SandboxPlan

SEED_BYTES = 64


class TemplateFailed(HakoError):
    """A VM did not come out of its template; `key` is the template's. `killed`: that was not the template's fault."""

    def __init__(self, key: str, cause: HakoError) -> None:
        super().__init__(str(cause))
        self.key = key
        self.killed = False


class Saved(NamedTuple):
    """A template, and the spec of the VM that it was."""

    template: template.Template
    spec: VmSpec


class Looked(NamedTuple):
    """What `find` found: a template, or why there is none ("": nobody wants one) and whether to `make` it."""

    saved: Saved | None
    reason: str = ""
    make: bool = False


def find(config: Config, files: GuestFiles, accelerator: str, vcpus: int) -> Looked:
    """The template for a pod with so many vCPUs: with the share mounted, or the next best. Never raises: a pod can boot."""
    unfit = vmspec.no_template(config)
    if unfit:
        return Looked(None)
    vcpus = vmspec.template_vcpus(config, accelerator, vcpus)
    is_default = vcpus == vmspec.default_vcpus(config, accelerator, hostfacts.limits())
    missing, reason = False, ""
    try:
        shape: templatebuild.Shape | None = templatebuild.Shape(config, accelerator, vcpus, files)
        while shape is not None:
            key = shape.identity.key
            found = template.find(key)
            if found is not None:
                return Looked(Saved(found, shape.spec), make=missing and is_default)
            failure = template.failure(key)
            missing = missing or not failure
            reason = reason or (f"template {key} failed: {failure}" if failure else f"there is no template {key} yet")
            shape = shape.plugged()
    except (OSError, HakoError) as exc:
        return Looked(None, f"no template can be named: {exc}")
    if missing and not is_default:
        return Looked(None, f"there is no template for {vcpus} vCPUs (hako factory init --vcpus {vcpus})")
    return Looked(None, reason, make=missing)


def make_its_own(request: agent_pb2.CreateSandboxRequest) -> None:
    """Fresh randomness and the time, which the agent takes before it makes anything of the pod's.

    Host name, vsock CID, MAC addresses come with the sandbox and the devices; the boot id is drawn when it is
    read for the first time, which nobody did in the template.
    """
    request.seed = os.urandom(SEED_BYTES)
    request.time = time.time_ns()


class Clone:
    """A VMM that waits for a saved VM while its memory is copied.

    `vm` is the VMM, the caller's to stop; the copy is to be closed once it has that, and freed when it has ended.
    """

    def __init__(self, config: Config, saved: template.Template, spec: VmSpec) -> None:
        """Raises TemplateFailed."""
        self._config = config
        self.key = saved.key
        self._size = (spec.vcpus, spec.memory_mib)
        with self._blamed():
            self._copy = template.Copy(saved)
            try:
                self.vm: Waiting = Qemu(config.hypervisor).restore(spec._replace(memory_fd=self._copy.memory_fd))
            except BaseException:
                self.close()
                self.free()
                raise

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except HakoError as exc:
            if isinstance(exc, BootError) and exc.killed:
                raise
            raise TemplateFailed(self.key, exc) from exc

    def enter(self, share: Share | None, vsock: Vsock, nics: tuple[Nic, ...]) -> Vm:
        """The VM, running, with its devices. Raises TemplateFailed."""
        with self._blamed():
            self._copy.finish()
            return self.vm.enter(self._copy.state_fd, share, vsock, nics)

    def await_hello(self, vm: Vm) -> None:
        """Until the agent has seen its vsock device. Raises TemplateFailed."""
        with self._blamed():
            vm.wait_ready(self._config.factory.restore_timeout)

    def grow(self, agent: AgentClient, vm: Vm, plan: SandboxPlan) -> None:
        """The size that the pod wants. Raises HakoError."""
        if (plan.vcpus, plan.memory_mib) == self._size:
            return
        vm.grow(plan.vcpus, plan.memory_mib)
        plugged = plan.vcpus - self._size[0]
        if plugged > 0:
            from agent.api import agent_pb2  # not needed before the VMM is there (launch.py)

            agent.do("OnlineCPUMem", agent_pb2.OnlineCPUMemRequest(wait=True, nb_cpus=plugged, cpu_only=True))

    def close(self) -> None:
        """The VMM has all of the copy. Idempotent."""
        self._copy.close()

    def free(self) -> None:
        """The VMM has ended. Idempotent."""
        self._copy.free()
