"""How a container's files reach the guest: what is asked, what is answered, and the answer of virtio-fs.

Owns: the vocabulary between container.py, which asks, and who answers: SharedFiles here ([share] shared_fs =
"virtio-fs"), disks.py ("none"). Must not know: the VM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from agent.api import agent_pb2
from shim.oci import mounts
from shim.oci.mounts import MountPlan
from shim.oci.spec import Spec
from shim.sandbox.rootfs import RootfsMount
from shim.share.tree import GUEST_ROOT, TAG

if TYPE_CHECKING:
    from shim.share.tree import ShareTree


class Wanted(NamedTuple):
    """A container's files. `rootfs`: host path where its root is mounted, unless `rootfs_mounts` are a disk."""

    container_id: str
    spec: Spec
    plans: Sequence[MountPlan]
    rootfs: str
    rootfs_mounts: Sequence[RootfsMount] = ()


class Placed(NamedTuple):
    """Guest paths: of the root, and of the sources of mounts by their index; what the guest has to mount for them.

    `on_host`: host path of the root if the guest sees the same files there.
    """

    rootfs: str
    sources: Mapping[int, str]
    storages: Sequence[agent_pb2.Storage] = ()
    on_host: str = ""


class Files(Protocol):
    """A way for files into one VM."""

    @property
    def unsaved(self) -> bool:
        """Whether the guest may have what was written to these files in its memory alone."""

    def sandbox_storage(self) -> agent_pb2.Storage:
        """What the guest mounts once, where all containers' files are."""

    def place(self, wanted: Wanted) -> Placed:
        """Make a container's files seen. Raises HakoError; `remove` is called then, too."""

    def remove(self, container_id: str, *, machine_ends: bool = False) -> None:
        """Take a container's files away; none is fine. With `machine_ends` the VM needs not let go of them."""


class SharedFiles:
    """Everything is in one tree, which virtiofsd shows.

    Nothing is unsaved once a container's processes have ended: fuse writes through, and what was written to a mapping when
    that goes (Linux, fs/fuse/file.c, fuse_vma_close).
    """

    unsaved = False

    def __init__(self, tree: ShareTree) -> None:
        self._tree = tree

    def sandbox_storage(self) -> agent_pb2.Storage:
        """The share."""
        return agent_pb2.Storage(driver="virtio-fs", source=TAG, fstype="virtiofs", options=["nodev"], mount_point=GUEST_ROOT)

    def place(self, wanted: Wanted) -> Placed:
        """See Files."""
        # Writable even for a read-only root: the guest makes missing mount points in it before it remounts
        # it.
        root = self._tree.add_rootfs(wanted.container_id, wanted.rootfs, readonly=False)
        sources = {
            plan.at: self._tree.add_volume(wanted.container_id, plan.at, plan.source, plan.readonly, plan.propagation)
            for plan in wanted.plans
            if plan.fate == mounts.SHARE
        }
        return Placed(root, sources, on_host=wanted.rootfs)

    def remove(self, container_id: str, *, machine_ends: bool = False) -> None:
        """See Files."""
        self._tree.remove(container_id)
