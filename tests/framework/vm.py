"""A booted guest for tests: share, vsock daemon, QEMU, and a client that is connected to its agent.

Owns: one VM from start to end, in the order of sandbox/builder.py but without containers, network and
cgroups. As a fixture it is `booted` in tests/vm/conftest.py; as a program, `python -m tests.framework.vm`,
it boots the guest and says what the agent tells of itself.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path

from agent.api import agent_pb2, empty_pb2, health_pb2
from agent.ttrpc.client import Client
from shim.config import Config, GuestConfig, HypervisorConfig
from shim.errors import NotFound
from shim.hypervisor import host
from shim.hypervisor.base import Share, VmSpec
from shim.hypervisor.qemu.driver import Qemu, QemuVm
from shim.hypervisor.vsock import Transport, open_transport
from shim.process import NEW_NETNS, Confinement
from shim.sandbox import guestfiles
from shim.share import virtiofsd
from shim.share.tree import GUEST_ROOT, TAG, ShareTree
from shim.share.virtiofsd import VirtioFs

NOBODY = Confinement(uid=65534, gid=65534, netns=NEW_NETNS)
BOOT_TIMEOUT = 60.0  # seconds; a second on a machine of its own, more where eight test runs share two cores
CALL_TIMEOUT = 30.0
GUEST = os.environ.get("HAKO_TEST_GUEST", "")
AGENT_PORT = 1024
AGENT = "grpc.AgentService"


def files() -> host.GuestFiles:
    """The guest that HAKO_TEST_GUEST names ({"kernel": PATH, "image": PATH}), or the one that was built last.

    Raises NotFound with what to do.
    """
    if GUEST:
        given = json.loads(Path(GUEST).read_text())
        return host.GuestFiles(given["kernel"], given.get("image"), given.get("initrd"))
    found = guestfiles.find(GuestConfig())
    return host.GuestFiles(found.kernel, found.image or None, found.initrd or None)


def missing() -> str:
    """Why no guest can be booted here, "" if one can."""
    try:
        files()
    except NotFound as exc:
        return str(exc)
    if not os.access(HypervisorConfig().path, os.X_OK):
        return "no QEMU: apt-get install qemu-system-x86"
    return ""


def spec(name: str, confine: Confinement = NOBODY) -> VmSpec:
    """The smallest VM that boots the guest."""
    found = files()
    return VmSpec(
        name=name,
        uuid=str(uuid.uuid4()),
        kernel=found.kernel,
        image=found.image,
        initrd=found.initrd,
        confine=confine,
        accelerator=host.probe_accelerator(HypervisorConfig(), found, confine).name,
    )


class Booted:
    """A guest whose agent answers. Everything in it is the test's to use; `close` takes it all away.

    `config` says which programs; `changes` are of the VmSpec.
    """

    def __init__(self, config: Config | None = None, **changes: object) -> None:
        self._config = config or Config()
        self.directory = Path(tempfile.mkdtemp(prefix="hako-vm-"))
        self._undo = ExitStack()
        self._undo.callback(shutil.rmtree, self.directory)
        os.chmod(self.directory, 0o711)  # the daemon's user passes through
        try:
            self._boot(changes)
        except BaseException:
            self.close()
            raise

    def _boot(self, changes: dict[str, object]) -> None:
        self.vsock = self._start_vsock()
        self.share = ShareTree(str(self.directory / "share"))
        self._undo.callback(self.share.close)
        self.virtiofsd = self._start_virtiofsd()
        wanted = spec("hako-test")._replace(share=Share(self.virtiofsd.vm_fd, TAG), vsock=self.vsock.device())
        self.vm = self._launch(wanted._replace(**changes))  # type: ignore[arg-type]
        os.close(self.virtiofsd.vm_fd)
        self.vsock.launched()
        self.vm.wait_ready(BOOT_TIMEOUT)
        self.agent = Client(self.vsock.connect(AGENT_PORT, CALL_TIMEOUT))
        self._undo.callback(self.agent.close)

    def _start_vsock(self) -> Transport:
        transport = open_transport(self._config.vsock, str(self.directory / "vsock"), NOBODY)
        self._undo.callback(transport.close)
        return transport

    def _start_virtiofsd(self) -> VirtioFs:
        started = virtiofsd.start(self.share.directory, self._config.share, Confinement())
        self._undo.callback(started.child.close)
        self._undo.callback(started.child.terminate, 0)
        return started

    def _launch(self, wanted: VmSpec) -> QemuVm:
        vm = Qemu(self._config.hypervisor).launch(wanted)
        self._undo.callback(vm.stop)
        return vm

    def check(self) -> None:
        """The agent says that it serves. Raises otherwise."""
        request = health_pb2.CheckRequest()
        answer = self.agent.call("grpc.Health", "Check", request, health_pb2.HealthCheckResponse, CALL_TIMEOUT)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def mount_share(self) -> None:
        """The guest's sandbox, with the share where containers look for it."""
        storage = agent_pb2.Storage(driver="virtio-fs", source=TAG, fstype="virtiofs", options=["nodev"], mount_point=GUEST_ROOT)
        request = agent_pb2.CreateSandboxRequest(hostname="test", storages=[storage], sandbox_id="test")
        self.agent.call(AGENT, "CreateSandbox", request, empty_pb2.Empty, CALL_TIMEOUT)

    def details(self) -> agent_pb2.GuestDetailsResponse:
        """What the agent tells of the guest."""
        request = agent_pb2.GuestDetailsRequest(mem_block_size=True)
        return self.agent.call(AGENT, "GetGuestDetails", request, agent_pb2.GuestDetailsResponse, CALL_TIMEOUT)

    def close(self) -> None:
        """End everything and check that nothing is left. Idempotent."""
        self._undo.close()

    def __enter__(self) -> Booted:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


if __name__ == "__main__":
    import time

    begin = time.monotonic()
    with Booted() as guest:
        print(f"booted in {time.monotonic() - begin:.2f} s")
        guest.check()
        guest.mount_share()
        print(guest.details())
