"""A real guest with the agent as PID 1, under QEMU with virtio-fs and vsock, and a caller of it.

Owns: the VM with its daemons, made with the shim's own drivers and nothing above them. Needs root, a guest
(make guest), QEMU, virtiofsd and vhost-device-vsock.
"""

from __future__ import annotations

import os
import socket
import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path

from agent.api import agent_pb2
from shim import config, tools
from shim.errors import HakoError
from shim.hypervisor.base import Share, VmSpec
from shim.hypervisor.qemu.driver import Qemu
from shim.hypervisor.vsock import DaemonTransport
from shim.process import Confinement
from shim.share import virtiofsd
from tests.framework import box, guests
from tests.framework.agentcalls import AgentCaller

BOOT_SECONDS = 60.0
PORTS = {"agent": 1024, "stdio": 1027}
SHARED = "/run/kata-containers/shared/containers"
NOBODY = 65534


def missing() -> str:
    """What lacks for such a guest, "" if nothing does."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [name for name in ("vhost-device-vsock",) if tools.find(name, ()) is None]
    if lacking:
        return f"python -m shim.tools --ensure {' '.join(lacking)}"
    try:
        virtiofsd.find()
    except HakoError as exc:
        return str(exc)
    return "" if os.path.exists(box.BUSYBOX) else "apt install busybox-static"


class AgentVm(AgentCaller):
    """`with AgentVm() as agent`: it has said hello, and `agent.client` is connected."""

    def __init__(self, memory_mib: int = 256, kernel_params: str = "") -> None:
        self._undo = ExitStack()
        self.directory = Path(self._undo.enter_context(tempfile.TemporaryDirectory(prefix="hako-vm-")))
        self.share = self.directory / "share"
        self.share.mkdir()
        super().__init__(self.share / "rootfs", SHARED + "/rootfs")
        self._memory_mib = memory_mib
        self._kernel_params = kernel_params

    def __enter__(self) -> AgentVm:
        try:
            self._boot()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _boot(self) -> None:
        files = guests.build("guest")
        unprivileged = Confinement(uid=NOBODY, gid=NOBODY)
        self.directory.chmod(0o755)
        self._vsock = DaemonTransport("", str(self.directory / "v"), unprivileged)
        self._undo.callback(self._vsock.close)
        shared = virtiofsd.start(str(self.share), config.ShareConfig(), Confinement(no_new_privs=False))
        self._undo.callback(shared.child.terminate, 1)
        spec = VmSpec(
            name="test",
            uuid=str(uuid.uuid4()),
            kernel=str(files["kernel"]),
            image=files["image"],
            initrd=files["initrd"],
            cmdline_extra=self._kernel_params,
            memory_mib=self._memory_mib,
            share=Share(shared.vm_fd, "kataShared"),
            vsock=self._vsock.device(),
            confine=unprivileged,
        )
        self.vm = Qemu(config.HypervisorConfig()).launch(spec)
        self._undo.callback(self.vm.stop)
        os.close(shared.vm_fd)
        self._vsock.launched()
        self.vm.wait_ready(BOOT_SECONDS)
        self.client = self.connect()
        self._undo.callback(lambda: self.client.close())

    def dial(self, service: str) -> socket.socket:
        """See AgentCaller."""
        return self._vsock.connect(PORTS[service], BOOT_SECONDS)

    def log(self) -> str:
        """The end of the guest's console."""
        return self.vm.console_tail()

    def create_sandbox(self, **fields: object) -> None:
        """With the share mounted."""
        share = agent_pb2.Storage(
            driver="virtio-fs", source="kataShared", fstype="virtiofs", options=["nodev"], mount_point=SHARED
        )
        super().create_sandbox(**{"storages": [share], **fields})
