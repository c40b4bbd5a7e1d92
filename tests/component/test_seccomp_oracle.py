"""Our filters against libseccomp's for the same profiles, call by call, on an interpreter."""

from __future__ import annotations

import json
import random
from ctypes import CDLL
from pathlib import Path
from typing import Any

import pytest

from agent import seccomp
from agent.api import jsonmap, oci_pb2
from agent.linux import syscall_numbers as numbers
from tests.framework import bpf_machine, libseccomp
from tests.framework.bpf_machine import Call

NATIVE, COMPAT, X32_BIT = seccomp.AUDIT_ARCH_X86_64, seccomp.AUDIT_ARCH_I386, seccomp.X32_BIT
PODMAN = Path("/usr/share/containers/seccomp.json")
EDGES = (
    0,
    1,
    5,
    0xFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 32,
    1 << 32 | 5,
    0xFFFFFFFF << 32,
    (1 << 64) - 1,
)
ALL = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]


@pytest.fixture(scope="module")
def library() -> CDLL:
    """libseccomp itself."""
    loaded = libseccomp.load()
    if loaded is None:
        pytest.skip("no libseccomp: apt install libseccomp2")
    return loaded


def differences(library: CDLL, profile: dict[str, Any], calls: list[Call]) -> list[tuple[Call, str, str]]:
    """(call, our answer, libseccomp's answer) where they are not the same."""
    config = oci_pb2.LinuxSeccomp()
    jsonmap.fill(config, profile)
    ours, theirs = bpf_machine.decode(seccomp.compile(config)), libseccomp.export(library, profile)
    answers = [(call, bpf_machine.run(ours, call), bpf_machine.run(theirs, call)) for call in calls]
    return [(call, hex(a), hex(b)) for call, a, b in answers if a != b]


def podman_profile() -> dict[str, Any]:
    """Podman's default profile as podman resolves it for a container without extra capabilities."""
    source = json.loads(PODMAN.read_text())
    entries = [
        {key: entry[key] for key in ("names", "action", "args", "errnoRet") if entry.get(key) is not None}
        for entry in source["syscalls"]
        if not (entry.get("includes") or {}).get("arches") and not (entry.get("includes") or {}).get("caps")
    ]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ALL,
        "syscalls": entries,
    }


def test_podmans_default_profile_decides_every_call_like_libseccomp(library: CDLL) -> None:
    """A real engine's profile gives the same answer for every number of every architecture."""
    if not PODMAN.exists():
        pytest.skip(f"no {PODMAN}: apt install golang-github-containers-common")
    calls = [
        Call(number | bit, arch, (value, 0, 0, 0, 0, 0))
        for arch, bit in ((NATIVE, 0), (COMPAT, 0), (NATIVE, X32_BIT))
        for number in range(560)
        for value in (0, 2, 16, 40, 0xFFFFFFFF)
    ]
    strangers = [Call(0xFFFFFFFF, NATIVE), Call(0xFFFFFFFF, COMPAT), Call(1, 0xC00000B7)]
    assert differences(library, podman_profile(), calls + strangers) == []


def _argument(choose: random.Random, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "op": choose.choice(sorted(libseccomp.OPERATORS)),
        "value": choose.choice(EDGES),
        "valueTwo": choose.choice(EDGES),
    }


def _random_profile(choose: random.Random, names: list[str]) -> dict[str, Any]:
    actions = ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_TRAP", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_LOG"]
    entries = [
        {
            "names": [name],
            "action": choose.choice(actions),
            "args": [
                _argument(choose, index) for index in choose.sample(range(3), choose.choice([0, 1, 1, 2]))
            ],
        }
        for name in names
    ]
    return {
        "defaultAction": choose.choice(actions),
        "architectures": choose.choice([[], ALL, ["SCMP_ARCH_X86"], ["SCMP_ARCH_X32"]]),
        "syscalls": entries,
    }


def _random_calls(choose: random.Random, names: list[str]) -> list[Call]:
    calls = []
    for name in names:
        for arch, number in (
            (NATIVE, numbers.X86_64[name]),
            (COMPAT, numbers.I386[name]),
            (NATIVE, numbers.X86_64[name] | X32_BIT),
        ):
            width = 0xFFFFFFFF if arch == COMPAT else (1 << 64) - 1
            for _ in range(12):
                args = [choose.choice(EDGES) & width for _ in range(3)]
                calls.append(Call(number, arch, (*args, 0, 0, 0)))
    return calls


@pytest.mark.parametrize("seed", range(40))
def test_random_profiles_decide_like_libseccomp(library: CDLL, seed: int) -> None:
    """One rule per call with edge values in 32 and 64 bits: every operator, every architecture."""
    choose = random.Random(seed)
    # libseccomp knows no number for newer calls, and none of map_shadow_stack for x32 although the kernel
    # has it.
    common = [
        name
        for name in numbers.X86_64
        if name in numbers.I386 and name not in numbers.X32_DIFFERENT and name != "map_shadow_stack"
        if name not in seccomp.SOCKETCALL and name not in seccomp.IPC
        if library.seccomp_syscall_resolve_name(name.encode()) >= 0
    ]
    names = choose.sample(common, 12)
    assert differences(library, _random_profile(choose, names), _random_calls(choose, names)) == []
