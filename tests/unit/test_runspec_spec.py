"""The OCI spec of `hako run` containers: options and image with Docker's defaults (shim/runspec)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shim import runspec
from shim.errors import HakoError, InvalidSpec
from shim.image.imageconfig import ImageConfig
from shim.oci import spec as oci
from shim.runspec import Bind, ImageUser, RunOptions, capabilities, seccomp
from tests.framework import golden

ROOT_USER = ImageUser(0, 0, (0,), "/root")
OPTIONS = RunOptions(id="0123456789abcdef" * 4, rootfs="/var/cache/hako/merged", command=("ls", "-l"))
IMAGE = ImageConfig(cmd=("sh",), env=("PATH=/image/bin", "LANG=C"), workdir="/srv", stop_signal="SIGQUIT")


def built(
    options: RunOptions = OPTIONS, image: ImageConfig | None = IMAGE, user: ImageUser = ROOT_USER
) -> dict[str, Any]:
    return runspec.build(options, image, user, seccomp.load(options.seccomp), "x86_64")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("default", OPTIONS),
        (
            "everything",
            OPTIONS._replace(
                entrypoint=("/bin/init",), env=("A=b", "LANG=de"), workdir="sub/dir/", hostname="box",
                terminal=True, read_only=True, cpus=1.5, memory=512 << 20, cap_add=("sys_admin",),
                cap_drop=("CAP_NET_RAW",),
                no_new_privileges=True, netns="/run/hako/netns/x", annotations={"a": "b"},
                volumes=(
                    Bind("/data", "/srv/data", read_only=True), Bind("/home", "/srv/", propagation="rslave")
                ),
                files={"/etc/resolv.conf": "/run/hako/c/resolv.conf"},
            ),
        ),
    ],
)  # fmt: skip
def test_the_whole_spec(name: str, options: RunOptions) -> None:
    """The config.json is, byte for byte, the one that was read and found right (but for the filter's
    names).
    """
    spec = built(options)
    spec["linux"]["seccomp"]["syscalls"] = "see seccomp-default.json"
    golden.check(f"runspec/{name}.json", json.dumps(spec, indent=2) + "\n")


def test_our_own_reader_accepts_it(tmp_path: Path) -> None:
    """shim.oci.spec, through which every bundle goes, finds nothing wrong with it."""
    (tmp_path / "config.json").write_text(json.dumps(built()))
    assert oci.load(str(tmp_path)).process is not None


def test_dockers_fourteen_capabilities() -> None:
    """A root process has exactly the bits 00000000a80425fb, none of them inheritable or ambient."""
    sets = built()["process"]["capabilities"]
    bits = sum(1 << capabilities.ALL.index(name) for name in sets["effective"])
    assert f"{bits:016x}" == "00000000a80425fb"
    assert sets["bounding"] == sets["permitted"] == sets["effective"]
    assert "inheritable" not in sets and "ambient" not in sets


def test_another_user_has_no_effective_capabilities() -> None:
    """Only the bounding set is there for what set-uid programs may gain."""
    process = built(user=ImageUser(1000, 100, (100, 5), "/home"))["process"]
    assert list(process["capabilities"]) == ["bounding"]
    assert process["user"] == {"uid": 1000, "gid": 100, "additionalGids": [100, 5]}


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        (["NET_ADMIN"], [], {*capabilities.DEFAULT, "CAP_NET_ADMIN"}),
        (["cap_net_admin"], ["ALL"], {"CAP_NET_ADMIN"}),
        ([], ["all"], set()),
        (["ALL"], [], set(capabilities.ALL)),
        (["ALL"], ["MKNOD", "SYS_MODULE"], set(capabilities.ALL) - {"CAP_MKNOD", "CAP_SYS_MODULE"}),
        (["CHOWN"], ["CHOWN"], set(capabilities.DEFAULT)),
        ([], ["CAP_CHOWN"], set(capabilities.DEFAULT) - {"CAP_CHOWN"}),
    ],
)
def test_capabilities_added_and_dropped(add: list[str], drop: list[str], expected: set[str]) -> None:
    """By Docker's rules: ALL in either place, with or without the prefix, an addition wins."""
    assert set(capabilities.choose(add, drop)) == expected


def test_an_unknown_capability_is_refused() -> None:
    """A misspelt name is an error, not a container with fewer rights."""
    with pytest.raises(InvalidSpec, match="NETADMIN"):
        capabilities.choose(["NETADMIN"], [])


@pytest.mark.parametrize(
    ("image", "entrypoint", "command", "expected"),
    [
        (ImageConfig(entrypoint=("e",), cmd=("c",)), None, (), ["e", "c"]),
        (ImageConfig(entrypoint=("e",), cmd=("c",)), None, ("x",), ["e", "x"]),
        (ImageConfig(cmd=("c",)), None, ("x", "y"), ["x", "y"]),
        (ImageConfig(entrypoint=("e",), cmd=("c",)), ("o",), (), ["o"]),
        (ImageConfig(entrypoint=("e",), cmd=("c",)), ("o",), ("x",), ["o", "x"]),
        (ImageConfig(entrypoint=("e",), cmd=("c",)), (), ("x",), ["x"]),
        (None, None, ("x",), ["x"]),
    ],
)
def test_entrypoint_and_command(
    image: ImageConfig | None,
    entrypoint: tuple[str, ...] | None,
    command: tuple[str, ...],
    expected: list[str],
) -> None:
    """The command replaces the image's, an entrypoint sets the image's command aside too."""
    options = OPTIONS._replace(entrypoint=entrypoint, command=command)
    assert built(options, image)["process"]["args"] == expected


@pytest.mark.parametrize("image", [None, ImageConfig(), ImageConfig(entrypoint=())])
def test_no_command_at_all_is_an_error(image: ImageConfig | None) -> None:
    """Neither the image nor the user says what to run."""
    with pytest.raises(InvalidSpec, match="no command"):
        built(OPTIONS._replace(command=()), image)


def test_environment_in_layers() -> None:
    """Ours under the image's under the user's; TERM only with a terminal; HOME is left to the agent."""
    plain = built()["process"]["env"]
    assert plain == ["PATH=/image/bin", "HOSTNAME=0123456789ab", "LANG=C"]
    options = OPTIONS._replace(env=("PATH=/user", "EMPTY=", "HOME=/x"), terminal=True)
    assert built(options)["process"]["env"] == [
        "PATH=/user", "HOSTNAME=0123456789ab", "TERM=xterm", "LANG=C", "EMPTY=", "HOME=/x"
    ]  # fmt: skip


@pytest.mark.parametrize(("workdir", "cwd"), [("", "/srv"), ("/a/../b", "/b"), ("x", "/x"), ("//y", "/y")])
def test_the_working_directory_is_absolute(workdir: str, cwd: str) -> None:
    """The user's before the image's, made absolute and plain."""
    assert built(OPTIONS._replace(workdir=workdir))["process"]["cwd"] == cwd


def test_volumes_take_the_place_of_defaults_and_come_in_order() -> None:
    """A volume on /dev/shm replaces the default one; a volume in another is mounted after it."""
    volumes = (
        Bind("/2", "/a/b/c"),
        Bind("/1", "/a"),
        Bind("/shm", "/dev/shm"),
        Bind("/r", "/etc/resolv.conf"),
    )
    spec = built(OPTIONS._replace(volumes=volumes, files={"/etc/resolv.conf": "/ours"}))
    places = [mount["destination"] for mount in spec["mounts"]]
    assert places.count("/dev/shm") == places.count("/etc/resolv.conf") == 1
    assert places.index("/a") < places.index("/a/b/c")
    assert {m["destination"]: m["source"] for m in spec["mounts"]}["/etc/resolv.conf"] == "/r"


@pytest.mark.parametrize(
    "bind", [Bind("relative", "/a"), Bind("/a", "relative"), Bind("/a", "/"), Bind("/a", "/b/..")]
)
def test_impossible_volumes_are_refused(bind: Bind) -> None:
    """Relative paths and the root itself cannot be volumes."""
    with pytest.raises(InvalidSpec):
        built(OPTIONS._replace(volumes=(bind,)))


def names(spec: dict[str, Any]) -> set[str]:
    """Calls that the spec's filter allows whatever their arguments."""
    rules = spec["linux"]["seccomp"]["syscalls"]
    return {
        name
        for rule in rules
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
        for name in rule["names"]
    }


def test_the_default_filter_follows_the_capabilities() -> None:
    """mount and bpf only with CAP_SYS_ADMIN; without it no new namespaces and no clone3; never io_uring,
    keyctl, kexec.
    """
    plain, admin = names(built()), names(built(OPTIONS._replace(cap_add=("SYS_ADMIN",))))
    assert {"read", "execve", "chroot"} <= plain
    assert not plain & {"mount", "bpf", "setns", "unshare", "clone", "clone3", "settimeofday", "socket"}
    assert {"mount", "bpf", "setns", "unshare", "clone", "clone3"} <= admin
    assert not admin & {"io_uring_setup", "keyctl", "kexec_load", "init_module", "userfaultfd", "swapon"}


def test_the_default_filter_keeps_vsock_away() -> None:
    """AF_VSOCK leads to the hypervisor and the agent: socket() is allowed for every family but 40."""
    rules = built()["linux"]["seccomp"]["syscalls"]
    found = [rule for rule in rules if "socket" in rule["names"]]
    assert [rule["args"] for rule in found] == [[{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]]


@pytest.mark.parametrize("cap_add", [(), ("ALL",)])
def test_the_agent_compiles_the_default_filter(cap_add: tuple[str, ...]) -> None:
    """The profile is one that the guest's compiler takes, within the kernel's 4096 instructions."""
    from agent import seccomp as compiler
    from agent.api import jsonmap, oci_pb2

    message = oci_pb2.LinuxSeccomp()
    jsonmap.fill(message, built(OPTIONS._replace(cap_add=cap_add))["linux"]["seccomp"])
    assert 0 < len(compiler.compile(message)) // 8 <= 4096


def test_the_architecture_decides() -> None:
    """arch_prctl exists for x86 alone, and the sub-architectures follow the machine."""
    profile = seccomp.load("")
    assert profile is not None
    x86 = seccomp.resolve(profile, [], "x86_64", (6, 1))
    arm = seccomp.resolve(profile, [], "aarch64", (6, 1))
    assert x86["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert arm["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    assert "arch_prctl" in str(x86) and "arch_prctl" not in str(arm)


def test_a_users_profile_in_dockers_form(tmp_path: Path) -> None:
    """includes, excludes, minKernel, old `name` and errnoRet mean what they mean to Docker."""
    rules = [
        {"name": "old", "action": "SCMP_ACT_ALLOW"},
        {"names": ["caps"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_CHOWN", "CAP_BPF"]}},
        {"names": ["uncapped"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0, "excludes": {"caps": ["CAP_BPF"]}},
        {"names": ["new"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["newer"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
        {"names": ["before"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "4.8"}},
    ]
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"defaultAction": "SCMP_ACT_KILL", "archMap": None, "syscalls": rules}))
    found = built(OPTIONS._replace(seccomp=str(file)))["linux"]["seccomp"]
    assert [rule["names"] for rule in found["syscalls"]] == [["old"], ["uncapped"], ["new"]]
    assert found["syscalls"][1]["errnoRet"] == 0 and found["defaultAction"] == "SCMP_ACT_KILL"


def test_a_profile_in_oci_form_passes_unchanged() -> None:
    """Architectures, flags and arguments of an OCI profile stay as they are."""
    profile: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
                      "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}]}],
    }  # fmt: skip
    assert seccomp.resolve(profile, [], "x86_64", (6, 1)) == profile


def test_unconfined_means_no_filter() -> None:
    """--security-opt seccomp=unconfined leaves the section out."""
    assert "seccomp" not in built(OPTIONS._replace(seccomp="unconfined"))["linux"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"defaultAction": "x", "syscalls": [{"action": "y"}]}',
        '{"defaultAction": "x", "syscalls": 5}',
    ],
)
def test_a_profile_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """A broken profile is an error, never a container without a filter."""
    file = tmp_path / "p.json"
    file.write_text(text)
    with pytest.raises(HakoError, match="seccomp profile"):
        built(OPTIONS._replace(seccomp=str(file)))
    with pytest.raises(HakoError, match=r"none\.json"):
        seccomp.load(str(tmp_path / "none.json"))


def test_make_looks_the_user_up(tmp_path: Path) -> None:
    """The user's wish, else the image's, as names of the image's passwd."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("web:x:33:44:w:/srv:/bin/sh\n")
    (tmp_path / "etc/group").write_text("extra:x:55:web\n")
    options = OPTIONS._replace(rootfs=str(tmp_path))
    image = ImageConfig(cmd=("sh",), user="web")
    assert runspec.make(options, image)["process"]["user"] == {
        "uid": 33,
        "gid": 44,
        "additionalGids": [44, 55],
    }
    assert runspec.make(options._replace(user="0:7"), image)["process"]["user"]["gid"] == 7
    assert runspec.make(options, None)["process"]["user"]["uid"] == 0


def test_exec_as_another_user(tmp_path: Path) -> None:
    """set_user changes ids and what follows from them, root and back, and keeps the umask."""
    process = built()["process"] | {"user": {"uid": 0, "gid": 0, "umask": 0o27}}
    runspec.set_user(process, str(tmp_path), "12:13")
    assert process["user"] == {"uid": 12, "gid": 13, "additionalGids": [13], "umask": 0o27}
    assert list(process["capabilities"]) == ["bounding"]
    runspec.set_user(process, str(tmp_path), "0")
    assert len(process["capabilities"]["effective"]) == 14
