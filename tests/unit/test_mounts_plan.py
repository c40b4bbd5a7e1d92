"""The mount planner: OCI mounts to operations, without any kernel."""

from __future__ import annotations

from typing import Any

import pytest

from agent import mounts
from agent.api import jsonmap, oci_pb2
from agent.errors import InvalidSpec
from agent.linux import syscalls


def _mount(destination: str = "/data", **mapping: Any) -> oci_pb2.Mount:
    message = oci_pb2.Mount()
    jsonmap.fill(message, {"destination": destination, **mapping})
    return message


def _plan(*planned: oci_pb2.Mount, cgroup: str = "") -> list[mounts.MountOp]:
    return mounts.plan(planned, "/bundle", cgroup)


def test_order_is_the_specs() -> None:
    """Later mounts go on top of or inside earlier ones."""
    planned = _plan(
        _mount("/proc", type="proc", source="proc"),
        _mount("/data", type="bind", source="/src"),
        _mount("/data/inner", type="tmpfs", source="tmpfs"),
    )
    assert [each.destination for each in planned] == ["/proc", "/data", "/data/inner"]


def test_describe_names_source_and_destination() -> None:
    """describe() is the debug log and the error text."""
    assert _plan(_mount(type="bind", source="/src", options=["rbind"]))[0].describe() == "rbind /src -> /data"
    tmpfs = _plan(_mount(type="tmpfs", source="tmpfs", options=["size=1k", "nosuid"]))[0]
    assert tmpfs.describe() == "tmpfs tmpfs -> /data [size=1k]"


def test_relative_bind_source_is_in_the_bundle() -> None:
    """OCI: relative to the bundle."""
    assert _plan(_mount(type="bind", source="volume"))[0].source == "/bundle/volume"


def test_bind_option_makes_a_bind_of_any_type() -> None:
    """Engines write type "none" or "bind"; the option decides."""
    planned = _plan(_mount(type="none", source="/src", options=["rbind", "ro"]))[0]
    assert isinstance(planned, mounts.BindMount)
    assert planned.options.recursive


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["ro"], (syscalls.MS_RDONLY, 0)),
        (["ro", "rw"], (0, syscalls.MS_RDONLY)),
        (["rw", "ro"], (syscalls.MS_RDONLY, 0)),
        (["nosuid", "nodev", "noexec"], (syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, 0)),
        (["defaults"], (0, 0)),
    ],
)
def test_flags_last_one_wins(names: list[str], expected: tuple[int, int]) -> None:
    """Options are applied in their order."""
    options = mounts.parse_options(names)
    assert (options.set, options.clear) == expected


def test_unknown_options_are_the_file_systems() -> None:
    """size=, mode=, gid= ... go to the file system as they are, in order."""
    assert _plan(_mount(type="tmpfs", options=["mode=755", "ro", "size=64k"]))[0].data == "mode=755,size=64k"


@pytest.mark.parametrize(
    ("name", "attr_set", "attr_clear"),
    [
        ("rro", syscalls.MOUNT_ATTR_RDONLY, 0),
        ("rrw", 0, syscalls.MOUNT_ATTR_RDONLY),
        ("rnosuid", syscalls.MOUNT_ATTR_NOSUID, 0),
        ("rexec", 0, syscalls.MOUNT_ATTR_NOEXEC),
        ("rnoatime", syscalls.MOUNT_ATTR_NOATIME, syscalls.MOUNT_ATTR__ATIME),
        ("rnosymfollow", syscalls.MOUNT_ATTR_NOSYMFOLLOW, 0),
    ],
)
def test_recursive_attributes(name: str, attr_set: int, attr_clear: int) -> None:
    """OCI 1.1's r-options change the whole tree through mount_setattr."""
    options = mounts.parse_options([name])
    assert (options.rec_set, options.rec_clear) == (attr_set, attr_clear)
    assert not options.data


def test_setting_access_time_clears_the_whole_field() -> None:
    """The kernel refuses to set one value of the atime field without clearing the others."""
    attr_set, attr_clear = mounts.attributes(syscalls.MS_NOATIME | syscalls.MS_RDONLY, 0)
    assert attr_set == syscalls.MOUNT_ATTR_NOATIME | syscalls.MOUNT_ATTR_RDONLY
    assert attr_clear == syscalls.MOUNT_ATTR__ATIME


def test_propagation_options_keep_their_order() -> None:
    """["rslave", "rshared"] makes a slave that is shared on."""
    options = mounts.parse_options(["rslave", "rshared"])
    recursive = syscalls.MS_REC
    assert options.propagation == [syscalls.MS_SLAVE | recursive, syscalls.MS_SHARED | recursive]


def test_mappings_imply_an_id_mapped_mount() -> None:
    """uidMappings without the option mean idmap; ridmap keeps its own recursion."""
    mapping = [{"hostID": 100000, "containerID": 0, "size": 10}]
    both: dict[str, Any] = {"uidMappings": mapping, "gidMappings": mapping}
    assert _plan(_mount(type="bind", source="/s", **both))[0].options.idmap == "idmap"
    assert _plan(_mount(type="bind", source="/s", options=["ridmap"], **both))[0].options.idmap == "ridmap"


def test_cgroup_without_namespace_shows_the_containers_own() -> None:
    """Without a cgroup namespace the container sees its own directory and not the guest's root."""
    planned = _plan(_mount("/sys/fs/cgroup", type="cgroup"), cgroup="/sys/fs/cgroup/pod/c1")[0]
    assert isinstance(planned, mounts.CgroupMount)
    assert planned.directory == "/sys/fs/cgroup/pod/c1"


@pytest.mark.parametrize("path", ["/", "", "//", "/."])
def test_the_root_itself_is_refused(path: str) -> None:
    """A mount over "/" would hide the rootfs from everything that follows."""
    with pytest.raises(InvalidSpec, match=r"mounts\[0\].destination"):
        _plan(_mount(path, type="tmpfs"))


@pytest.mark.parametrize(
    "mapping",
    [
        {"destination": "/proc", "type": "bind", "source": "/x"},
        {"destination": "/proc/", "type": "bind", "source": "/x"},
        {"type": "bind"},
        {"source": "/x"},
        {"type": "tmpfs", "options": ["idmap"]},
        {"type": "proc", "options": ["tmpcopyup"]},
    ],
)
def test_what_cannot_be_meant_is_refused(mapping: dict[str, Any]) -> None:
    """A bind over /proc, a bind without source, a mount without type, options that the kind cannot have."""
    with pytest.raises(InvalidSpec, match=r"mounts\[0\]"):
        _plan(_mount(**mapping))


@pytest.mark.parametrize(
    ("path", "normal"), [("data", "/data"), ("/a//b/./c/", "/a/b/c"), ("/a/../b", "/a/../b")]
)
def test_paths_are_normalized_without_resolving(path: str, normal: str) -> None:
    """ ".." is left to the kernel: what it means depends on symlinks."""
    assert mounts.normal_path(path) == normal
